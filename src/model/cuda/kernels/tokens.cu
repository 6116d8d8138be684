// Activations on their way into a product: in 8 bit for few tokens and integer formats, in the type of the weights for many.

// Block x covers columns, block y is a token; 8 threads make a block of 32. As the CPU's: the largest magnitude is 127, and
// what is not finite makes the scale no number.
extern "C" __global__ void quantise_tokens(const float *x, u32 cols, u32 n_blocks, u8 *codes, uint2 *blocks) {
    u32 quad = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y;
    x += static_cast<u64>(token) * cols;
    float four[4];
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 column = quad * 4 + i;
        four[i] = column < cols ? x[column] : 0.0f;
        u32 size = __float_as_uint(four[i]) & 0x7fffffffu;
        largest = size > largest ? size : largest;
    }
#pragma unroll
    for (int lanes = 1; lanes < 8; lanes *= 2)
        largest = max(static_cast<int>(largest), __shfl_xor_sync(ALL_LANES, static_cast<int>(largest), lanes));
    bool finite = largest < 0x7f800000u;
    float size = __uint_as_float(largest);
    // Below this the inverse would be infinite.
    if (!finite || size < 1e-36f) size = 0.0f;
    float inverse = size > 0.0f ? 127.0f / size : 0.0f;
    u32 word = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        // Adding 1.5 · 2^23 rounds to a whole number, ties to even.
        int code = finite ? static_cast<int>(__float_as_uint(four[i] * inverse + 12582912.0f) - 0x4b400000u) : 0;
        sum += code;
        word |= (static_cast<u32>(code) & 255u) << (i * 8);
    }
#pragma unroll
    for (int lanes = 1; lanes < 8; lanes *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    u32 block = quad / 8, part = quad % 8;
    if (block >= n_blocks) return;
    u64 plane = static_cast<u64>(token) * 2 + part / 4;
    *reinterpret_cast<u32 *>(codes + (plane * n_blocks + block) * 16 + part % 4 * 4) = word;
    if (part == 0) {
        uint2 of_block;
        of_block.x = finite ? __float_as_uint(size / 127.0f) : 0x7fc00000u;
        of_block.y = static_cast<u32>(sum);
        blocks[static_cast<u64>(token) * n_blocks + block] = of_block;
    }
}

// Which column is at a place of a row of dense weights of 16 bits: see `pack.rs`.
__device__ __forceinline__ u32 column_at(u32 place, u32 stride) {
    u32 group = place / 256 * 256;
    u32 half = (stride - group < 256 ? stride - group : 256) / 2;
    u32 inside = place - group;
    return group + inside % 8 / 4 * half + inside / 8 * 4 + inside % 4;
}

// Row after row with zeros up to `stride` columns; block y is a token.
template <class T>
__device__ __forceinline__ void copy_tokens(const float *x, u32 cols, u32 stride, int as_weights, T *out) {
    u32 place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= stride) return;
    u32 column = as_weights ? column_at(place, stride) : place;
    float number = column < cols ? x[static_cast<u64>(blockIdx.y) * cols + column] : 0.0f;
    narrow(within(number, T()), out[static_cast<u64>(blockIdx.y) * stride + place]);
}

extern "C" __global__ void tokens_to_f32(const float *x, u32 cols, u32 stride, int as_weights, float *out) {
    copy_tokens(x, cols, stride, as_weights, out);
}

extern "C" __global__ void tokens_to_bf16(const float *x, u32 cols, u32 stride, int as_weights, Bf16 *out) {
    copy_tokens(x, cols, stride, as_weights, out);
}

extern "C" __global__ void tokens_to_f16(const float *x, u32 cols, u32 stride, int as_weights, Half *out) {
    copy_tokens(x, cols, stride, as_weights, out);
}

// What a product is added to: the bias in every row, and what was there if `keep`.
extern "C" __global__ void begin_with_bias(float *y, const float *bias, u32 rows, int keep) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float *at = y + static_cast<u64>(blockIdx.y) * rows + row;
    *at = keep ? *at + bias[row] : bias[row];
}
