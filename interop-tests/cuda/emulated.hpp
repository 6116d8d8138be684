// What the parts of the emulated card know of each other: the driver, the scheduler of threads, cuBLAS, and kernels that
// were compiled for the host. CUDA's own types are pointers and numbers here; only what is used is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace emulated {

struct Index {
    unsigned x, y, z;
};

// One thread of a block, as kernels see themselves.
struct Thread {
    Index thread, block;
    Index block_size, grid_size;
    unsigned char *shared;
};

// A kernel as the host can call it.
struct Kernel {
    std::string name;
    void (*call)(void **arguments) = nullptr;
    // Bytes of each argument; ends with 0.
    const size_t *sizes = nullptr;
    // Dynamic shared memory that was asked for.
    unsigned max_shared = 48 << 10;
};

struct Launch {
    const Kernel *kernel;
    Index grid, block;
    unsigned shared_bytes;
    void **arguments;
};

// Runs all blocks, one after the other. Empty if all went well, otherwise what is wrong with the kernel.
std::string run(const Launch &launch);

// Where the last fault of the running kernel is told: which block and thread.
std::string where();

}  // namespace emulated

extern "C" {
// Does `operation` on the card of `stream`, after everything that was asked for before. Returns a CUresult.
int emulated_enqueue(void *stream, const std::function<void()> *operation, const char *name);

// For compiled kernels.
extern emulated::Thread *emulated_self;
void emulated_barrier();
uint32_t emulated_exchange(uint32_t mask, uint32_t bits, unsigned source_lane);
unsigned emulated_lane();
}
