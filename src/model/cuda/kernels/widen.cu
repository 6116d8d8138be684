// Quantised weights back into single numbers, for products with many tokens and for whoever wants them. A thread has 8
// columns, 16 bytes of what is written in 16 bits, and its neighbours have those beside them: so a warp writes whole lines.

#define COLUMNS 8

// The codebook where lanes that look up different codes do not wait for each other, if the format has one. All threads of a
// block are here.
template <class F>
__device__ __forceinline__ const float *shared_codebook(F) {
    return 0;
}

__device__ __forceinline__ const float *shared_codebook(Nf4) {
    __shared__ float codebook[16];
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_codebook[threadIdx.x];
    __syncthreads();
    return codebook;
}

// Those columns of all rows that are the `at`th so many, for each format.
__device__ __forceinline__ void eight(Q8_0, const Matrix &matrix, u64 at, const float *, float *out) {
    uint2 codes = load8(matrix.codes + at * 8);
    u32 words[2] = {codes.x, codes.y};
    float scale = widen_half(load_u16(matrix.scales + at / 4 * 2));
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        out[i] = scale * static_cast<float>(static_cast<signed char>(words[i / 4] >> (i % 4 * 8)));
}

// Of each 32 columns the first two eights are the lower halves of 16 bytes, the others the upper ones.
__device__ __forceinline__ void eight_nibbles(const Matrix &matrix, u64 at, float *out) {
    uint2 codes = load8(matrix.codes + at / 4 * 16 + at % 2 * 8);
    u32 words[2] = {codes.x, codes.y}, shift = static_cast<u32>(at) / 2 % 2 * 4;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) out[i] = static_cast<float>(words[i / 4] >> (i % 4 * 8 + shift) & 15u);
}

__device__ __forceinline__ void eight(Q4_0, const Matrix &matrix, u64 at, const float *, float *out) {
    float scale = widen_half(load_u16(matrix.scales + at / 4 * 2));
    eight_nibbles(matrix, at, out);
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) out[i] = scale * (out[i] - 8.0f);
}

__device__ __forceinline__ void eight(Q4K, const Matrix &matrix, u64 at, const float *, float *out) {
    Q4K::Raw raw = {};
    raw.scale_and_minimum = load_u16(matrix.scales + at / 4 * 2);
    raw.factors = *reinterpret_cast<const u32 *>(matrix.more_scales + at / 32 * 4);
    Q4K::Ready ready = Q4K::prepare(raw, 0, 0);
    eight_nibbles(matrix, at, out);
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) out[i] = ready.scale * out[i] - ready.minimum;
}

// Two neighbours' columns of the same 128, of the 4 times 128 that a chunk has columns of.
__device__ __forceinline__ void eight(Nf4, const Matrix &matrix, u64 at, const float *codebook, float *out) {
    u32 inside = static_cast<u32>(at % 64), part = inside / 16, pair = inside % 16;
    const u8 *codes = matrix.codes + at / 64 * 256 + pair * 16 + part * 2;
    u32 both[2] = {load_u16(codes), load_u16(codes + 8)};
    float scale = widen_half(load_u16(matrix.scales + at / 64 * 16 + pair / 8 * 8 + part * 2));
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) out[i] = codebook[both[i / 4] >> (i % 4 * 4) & 15u] * scale;
}

__device__ __forceinline__ void put(const float *numbers, float *out) {
    float4 *quads = reinterpret_cast<float4 *>(out);
    quads[0] = make_float4(numbers[0], numbers[1], numbers[2], numbers[3]);
    quads[1] = make_float4(numbers[4], numbers[5], numbers[6], numbers[7]);
}

template <class T>
__device__ __forceinline__ void put(const float *numbers, T *out) {
    u32 words[COLUMNS / 2];
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++) {
        T low, high;
        narrow(within(numbers[2 * i], T()), low);
        narrow(within(numbers[2 * i + 1], T()), high);
        words[i] = low.bits | static_cast<u32>(high.bits) << 16;
    }
    *reinterpret_cast<uint4 *>(out) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Rows `first_row` and after, of `eights` each, to `out`, which begins at a multiple of 16 bytes: all columns that chunks
// have. Block y is a row.
template <class T>
__device__ __forceinline__ void widen_rows(const Matrix &matrix, u32 first_row, u32 eights, T *out) {
    const float *codebook = shared_codebook(FORMAT());
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= eights) return;
    float numbers[COLUMNS];
    eight(FORMAT(), matrix, (static_cast<u64>(first_row) + blockIdx.y) * eights + at, codebook, numbers);
    put(numbers, out + (static_cast<u64>(blockIdx.y) * eights + at) * COLUMNS);
}

#define WIDEN(NAME, T)                                                                                                   \
    extern "C" __global__ void NAME(const u8 *codes, const u8 *scales, const u8 *more_scales, u32 first_row, u32 eights, \
                                    T *out) {                                                                            \
        widen_rows({codes, scales, more_scales, 0, 0, 0}, first_row, eights, out);                                       \
    }

WIDEN(widen_to_bf16, Bf16)
WIDEN(widen_to_f16, Half)
WIDEN(widen_to_f32, float)
