// The threads of a block as fibers on one thread of the host: each runs until it waits for others, so that barriers and
// exchanges within a warp work as on a card, and threads that part ways where they must not are found.

#include "emulated.hpp"

#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulated {
namespace {

constexpr unsigned WARP = 32;
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK = 128 << 10;
constexpr size_t MAX_SHARED = 256 << 10;

enum class State { Ready, AtBarrier, InExchange, Done };

#if defined(__x86_64__)
using Place = void *;
extern "C" void emulated_switch(void **save, void *load);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");
#else
using Place = ucontext_t;
#endif

struct Fiber {
    Thread self;
    State state;
    Place place;
    unsigned char *stack;
};

// Values that the lanes of a warp show each other; of two exchanges in a row, so that one wait per exchange is enough.
struct Warp {
    uint32_t values[2][WARP];
    unsigned parity, arrived;
};

struct Scheduler {
    Fiber fibers[MAX_THREADS];
    Warp warps[MAX_THREADS / WARP];
    Place outside;
    Fiber *current = nullptr;
    const Launch *launch = nullptr;
    unsigned n_threads = 0;
    unsigned char *shared_end = nullptr;
    std::string wrong;
    unsigned n_launches = 0;
};

Scheduler *scheduler = nullptr;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

Scheduler &the() {
    if (scheduler) return *scheduler;
    scheduler = new Scheduler();
    for (auto &fiber : scheduler->fibers) {
        void *memory = mmap(nullptr, STACK + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        mprotect(memory, page(), PROT_NONE);
        fiber.stack = static_cast<unsigned char *>(memory) + page();
    }
    void *memory = mmap(nullptr, MAX_SHARED + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    scheduler->shared_end = static_cast<unsigned char *>(memory) + MAX_SHARED;
    mprotect(scheduler->shared_end, page(), PROT_NONE);
    return *scheduler;
}

void to_outside() {
    auto *fiber = scheduler->current;
#if defined(__x86_64__)
    emulated_switch(&fiber->place, scheduler->outside);
#else
    swapcontext(&fiber->place, &scheduler->outside);
#endif
}

void body() {
    scheduler->launch->kernel->call(scheduler->launch->arguments);
    scheduler->current->state = State::Done;
    to_outside();
    __builtin_trap();
}

void prepare(Fiber &fiber) {
    fiber.state = State::Ready;
#if defined(__x86_64__)
    auto *top = reinterpret_cast<void **>(fiber.stack + STACK);
    // As after a call of `body`: its return address, which is never used, is where the ABI wants it.
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(&body);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.place = top;
#else
    getcontext(&fiber.place);
    fiber.place.uc_stack.ss_sp = fiber.stack;
    fiber.place.uc_stack.ss_size = STACK;
    fiber.place.uc_link = nullptr;
    makecontext(&fiber.place, body, 0);
#endif
}

void resume(Fiber &fiber) {
    scheduler->current = &fiber;
    emulated_self = &fiber.self;
#if defined(__x86_64__)
    emulated_switch(&scheduler->outside, fiber.place);
#else
    swapcontext(&scheduler->outside, &fiber.place);
#endif
}

// Runs the threads of a warp until all wait for others or are done. Forwards and backwards by turns: what depends on the
// order of threads comes out differently, and so is found.
void run_warp(Scheduler &s, unsigned first, bool backwards) {
    unsigned n = s.n_threads - first < WARP ? s.n_threads - first : WARP;
    for (bool ran = true; ran;) {
        ran = false;
        for (unsigned i = 0; i < n; i++) {
            auto &fiber = s.fibers[first + (backwards ? n - 1 - i : i)];
            if (fiber.state != State::Ready) continue;
            resume(fiber);
            ran = true;
        }
        backwards = !backwards;
    }
}

std::string run_block(Scheduler &s, unsigned phase) {
    memset(s.shared_end - ((s.launch->shared_bytes + 15) / 16 * 16), 0xff, (s.launch->shared_bytes + 15) / 16 * 16);
    memset(s.warps, 0, sizeof s.warps);
    for (unsigned i = 0; i < s.n_threads; i++) prepare(s.fibers[i]);
    for (;; phase++) {
        bool backwards = phase % 2;
        unsigned n_warps = (s.n_threads + WARP - 1) / WARP;
        for (unsigned i = 0; i < n_warps; i++) run_warp(s, (backwards ? n_warps - 1 - i : i) * WARP, backwards);
        unsigned done = 0, at_barrier = 0;
        for (unsigned i = 0; i < s.n_threads; i++) {
            s.current = &s.fibers[i];
            if (s.fibers[i].state == State::InExchange) return "a shuffle that not all lanes of the warp take part in";
            done += s.fibers[i].state == State::Done;
            at_barrier += s.fibers[i].state == State::AtBarrier;
            if (!s.wrong.empty()) return s.wrong;
        }
        if (done == s.n_threads) return "";
        if (at_barrier != s.n_threads) return "a barrier that not all threads of the block reach";
        for (unsigned i = 0; i < s.n_threads; i++) s.fibers[i].state = State::Ready;
    }
}

}  // namespace

std::string where() {
    if (!scheduler || !scheduler->launch || !scheduler->current) return "";
    const auto &self = scheduler->current->self;
    auto three = [](Index i) { return std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z); };
    return "kernel " + scheduler->launch->kernel->name + ", block " + three(self.block) + " of " + three(self.grid_size) +
           ", thread " + three(self.thread) + " of " + three(self.block_size);
}

std::string run(const Launch &launch) {
    auto &s = the();
    s.launch = &launch;
    s.wrong.clear();
    s.n_threads = launch.block.x * launch.block.y * launch.block.z;
    for (unsigned i = 0; i < s.n_threads; i++) {
        auto &self = s.fibers[i].self;
        self.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
        self.block_size = launch.block;
        self.grid_size = launch.grid;
        self.shared = s.shared_end - ((launch.shared_bytes + 15) / 16 * 16);
    }
    size_t n_blocks = static_cast<size_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    bool backwards = s.n_launches++ % 2;
    std::string wrong;
    for (size_t n = 0; n < n_blocks && wrong.empty(); n++) {
        size_t i = backwards ? n_blocks - 1 - n : n;
        Index block = {static_cast<unsigned>(i % launch.grid.x), static_cast<unsigned>(i / launch.grid.x % launch.grid.y),
                       static_cast<unsigned>(i / launch.grid.x / launch.grid.y)};
        for (unsigned t = 0; t < s.n_threads; t++) s.fibers[t].self.block = block;
        wrong = run_block(s, static_cast<unsigned>(i + backwards));
        if (!wrong.empty()) wrong += " (" + where() + ")";
    }
    s.launch = nullptr;
    return wrong;
}

}  // namespace emulated

emulated::Thread *emulated_self = nullptr;

void emulated_barrier() {
    emulated::scheduler->current->state = emulated::State::AtBarrier;
    emulated::to_outside();
}

unsigned emulated_lane() {
    return static_cast<unsigned>(emulated::scheduler->current - emulated::scheduler->fibers) % emulated::WARP;
}

uint32_t emulated_exchange(uint32_t mask, uint32_t bits, unsigned source_lane) {
    using namespace emulated;
    auto &s = *scheduler;
    auto thread = static_cast<unsigned>(s.current - s.fibers);
    auto &warp = s.warps[thread / WARP];
    unsigned first = thread / WARP * WARP;
    unsigned lanes = s.n_threads - first < WARP ? s.n_threads - first : WARP;
    if (mask != 0xffffffffu || lanes != WARP) s.wrong = "a shuffle of less than a whole warp";
    unsigned parity = warp.parity;
    warp.values[parity][thread % WARP] = bits;
    if (++warp.arrived == lanes) {
        warp.arrived = 0;
        warp.parity ^= 1;
        for (unsigned i = 0; i < lanes; i++) s.fibers[first + i].state = State::Ready;
    } else {
        s.current->state = State::InExchange;
        to_outside();
    }
    return warp.values[parity][source_lane % WARP];
}
