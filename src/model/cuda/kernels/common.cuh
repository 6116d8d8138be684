// In front of every text of kernels: numbers of 16 bits, sums over a warp, loads of 16 bytes. Plain CUDA C without any
// header, so that the run-time compiler needs none; where a number has to be the same whatever it is computed beside, every
// multiplication with addition is written as one (`fmaf`), and no other may become one.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define ALL_LANES 0xffffffffu

#ifdef EMULATED
#define SHARED_MEMORY(type, name) type *name = reinterpret_cast<type *>(emulated_self->shared)
#else
#define SHARED_MEMORY(type, name)                                  \
    extern __shared__ __align__(16) unsigned char shared_memory[]; \
    type *name = reinterpret_cast<type *>(shared_memory)
#endif

struct Bf16 {
    u16 bits;
};

struct Half {
    u16 bits;
};

__device__ __forceinline__ float widen_bf16(u32 bits) { return __uint_as_float(bits << 16); }

// To the nearest, ties to even.
__device__ __forceinline__ u16 to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40u);
    return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#ifdef EMULATED
__device__ __forceinline__ float widen_half(u32 bits) {
    u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 1023u;
    if (exponent == 0) {
        float small = static_cast<float>(fraction) * 5.9604644775390625e-8f;
        return sign ? -small : small;
    }
    return __uint_as_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | fraction << 13);
}

__device__ __forceinline__ u16 to_half(float x) {
    u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<u16>(sign | 0x7e00u | (size >> 13 & 1023u));
    if (size >= 0x47800000u) return static_cast<u16>(sign | 0x7c00u);
    if (size < 0x38800000u) {
        // Adding a half moves the last bit of a small f16 to the last of an f32.
        u32 small = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u;
        return static_cast<u16>(sign | small);
    }
    u32 rounded = size + 0xfffu + (size >> 13 & 1u) - 0x38000000u;
    return static_cast<u16>(sign | rounded >> 13);
}
#else
__device__ __forceinline__ float widen_half(u32 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<u16>(bits)));
    return x;
}

__device__ __forceinline__ u16 to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bf16 x) { return widen_bf16(x.bits); }
__device__ __forceinline__ float widen(Half x) { return widen_half(x.bits); }

__device__ __forceinline__ void narrow(float x, float &out) { out = x; }
__device__ __forceinline__ void narrow(float x, Bf16 &out) { out.bits = to_bf16(x); }
__device__ __forceinline__ void narrow(float x, Half &out) { out.bits = to_half(x); }

// f16 has no numbers above this.
__device__ __forceinline__ float within(float x, Half) { return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x; }
__device__ __forceinline__ float within(float x, Bf16) { return x; }
__device__ __forceinline__ float within(float x, float) { return x; }

// What 16 bytes hold, as f32.
template <class T>
struct Sixteen;

template <>
struct Sixteen<float> {
    static const int N = 4;
    static __device__ __forceinline__ void widen(uint4 raw, float *out) {
        out[0] = __uint_as_float(raw.x);
        out[1] = __uint_as_float(raw.y);
        out[2] = __uint_as_float(raw.z);
        out[3] = __uint_as_float(raw.w);
    }
};

template <>
struct Sixteen<Bf16> {
    static const int N = 8;
    static __device__ __forceinline__ void widen(uint4 raw, float *out) {
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = __uint_as_float(words[i] << 16);
            out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
};

template <>
struct Sixteen<Half> {
    static const int N = 8;
    static __device__ __forceinline__ void widen(uint4 raw, float *out) {
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = widen_half(words[i] & 0xffffu);
            out[2 * i + 1] = widen_half(words[i] >> 16);
        }
    }
};

template <>
struct Sixteen<signed char> {
    static const int N = 16;
    static __device__ __forceinline__ void widen(uint4 raw, float *out) {
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 16; i++) out[i] = static_cast<float>(static_cast<signed char>(words[i / 4] >> (i % 4 * 8)));
    }
};

// The sum over all lanes, in each of them.
__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

__device__ __forceinline__ float max_of_warp(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// The sum over all threads of a block of whole warps, in each of them; `shared` has room for a number per warp.
__device__ __forceinline__ float sum_of_block(float x, float *shared) {
    x = sum_of_warp(x);
    int warps = static_cast<int>(blockDim.x) / WARP;
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0.0f;
    for (int i = 0; i < warps; i++) x += shared[i];
    __syncthreads();
    return x;
}
