// Quantised weights back into single numbers, for products with many tokens and for whoever wants them.

// What each format's chunks are, column after column: `put` is given columns and numbers.
template <class Put>
__device__ __forceinline__ void each_number(Q8_0::Raw raw, u32 chunk, Put put) {
    u32 words[4] = {raw.codes.x, raw.codes.y, raw.codes.z, raw.codes.w};
    float scale = widen_half(raw.scale);
#pragma unroll
    for (int i = 0; i < 16; i++)
        put(chunk * 16 + i, scale * static_cast<float>(static_cast<signed char>(words[i / 4] >> (i % 4 * 8))));
}

template <class Put>
__device__ __forceinline__ void each_nibble(uint4 codes, u32 chunk, Put put) {
    u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 32; i++)
        put(chunk * 32 + i, static_cast<float>(words[i % 16 / 4] >> (i % 4 * 8 + i / 16 * 4) & 15u));
}

template <class Put>
__device__ __forceinline__ void each_number(Q4_0::Raw raw, u32 chunk, Put put) {
    float scale = widen_half(raw.scale);
    each_nibble(raw.codes, chunk, [&](u32 column, float code) { put(column, scale * (code - 8.0f)); });
}

template <class Put>
__device__ __forceinline__ void each_number(Q4K::Raw raw, u32 chunk, Put put) {
    Q4K::Ready ready = Q4K::prepare(raw, 0, 0);
    each_nibble(ready.codes, chunk, [&](u32 column, float code) { put(column, ready.scale * code - ready.minimum); });
}

template <class Put>
__device__ __forceinline__ void each_number(Nf4::Raw raw, u32 chunk, Put put) {
#pragma unroll
    for (int part = 0; part < 2; part++) {
        Nf4::Ready ready = Nf4::prepare(raw, part, nf4_codebook);
#pragma unroll
        for (int i = 0; i < 8; i++)
            put(chunk / WARP * 512 + chunk % WARP * 4 + part * 256 + i / 4 * 128 + i % 4, ready.numbers[i]);
    }
}

// A thread per chunk of rows `first_row` and after; `out` is [rows, width] with all columns that chunks have.
template <class T>
__device__ __forceinline__ void widen_rows(const Matrix &matrix, u32 first_row, u32 chunks, u32 width, T *out) {
    u32 chunk = blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    T *row = out + static_cast<u64>(blockIdx.y) * width;
    each_number(FORMAT::load(matrix, (static_cast<u64>(first_row) + blockIdx.y) * chunks + chunk), chunk,
                [&](u32 column, float number) { narrow(number, row[column]); });
}

extern "C" __global__ void widen_to_bf16(const u8 *codes, const u8 *scales, const u8 *more_scales, u32 first_row, u32 chunks,
                                         u32 width, Bf16 *out) {
    widen_rows({codes, scales, more_scales, 0, 0, 0}, first_row, chunks, width, out);
}

extern "C" __global__ void widen_to_f32(const u8 *codes, const u8 *scales, const u8 *more_scales, u32 first_row, u32 chunks,
                                        u32 width, float *out) {
    widen_rows({codes, scales, more_scales, 0, 0, 0}, first_row, chunks, width, out);
}
