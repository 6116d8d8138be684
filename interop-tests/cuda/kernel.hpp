// CUDA C for a C++ compiler of the host: what the kernels use of it, and no more. It is put in front of each text; `call`
// turns the driver's array of pointers into a call of the kernel.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace emulated {
struct Index {
    unsigned x, y, z;
};
struct Thread {
    Index thread, block;
    Index block_size, grid_size;
    unsigned char *shared;
};
template <class... A>
inline constexpr size_t sizes[] = {sizeof(A)..., 0};
template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}
template <class... A>
const size_t *sizes_of(void (*)(A...)) {
    return sizes<A...>;
}
}  // namespace emulated

extern "C" {
extern emulated::Thread *emulated_self;
void emulated_barrier();
uint32_t emulated_exchange(uint32_t mask, uint32_t bits, unsigned source_lane);
unsigned emulated_lane();
}

#define EMULATED 1
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __global__ __attribute__((used, noinline, visibility("default")))
#define threadIdx (emulated_self->thread)
#define blockIdx (emulated_self->block)
#define blockDim (emulated_self->block_size)
#define gridDim (emulated_self->grid_size)
#define __syncthreads() emulated_barrier()

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }

inline float __shfl_xor_sync(unsigned mask, float x, int lanes) {
    return __uint_as_float(emulated_exchange(mask, __float_as_uint(x), emulated_lane() ^ static_cast<unsigned>(lanes)));
}
inline float __shfl_sync(unsigned mask, float x, int lane) {
    return __uint_as_float(emulated_exchange(mask, __float_as_uint(x), static_cast<unsigned>(lane)));
}
inline int __shfl_xor_sync(unsigned mask, int x, int lanes) {
    return static_cast<int>(emulated_exchange(mask, static_cast<uint32_t>(x), emulated_lane() ^ static_cast<unsigned>(lanes)));
}

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
    return sum;
}

template <class T>
inline T __ldcs(const T *at) {
    return *at;
}
template <class T>
inline T __ldg(const T *at) {
    return *at;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
