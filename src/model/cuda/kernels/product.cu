// y = x · Wᵀ for many tokens where there is no cuBLAS: tiles of 64 rows and 64 tokens, whose numbers go through shared
// memory as f32. A thread has 4 rows and 4 tokens of the tile.

#define TILE 64
#define DEPTH 16
// Keeps the threads that write a tile on different banks.
#define PAD 4

// 4 numbers of `row` from column k on; zeros outside of the matrix. k and cols are multiples of 4.
template <class T>
__device__ __forceinline__ void load_quad(const T *matrix, u32 rows, u32 cols, u32 row, u32 k, float *out) {
    bool inside = row < rows && k < cols;
    const T *at = matrix + static_cast<u64>(row) * cols + k;
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = inside ? widen(at[i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void product(const T *weights, const T *x, float *y, u32 rows, u32 cols, u32 tokens, u32 y_stride,
                                        int keep) {
    __shared__ __align__(16) float w_tile[DEPTH][TILE + PAD];
    __shared__ __align__(16) float x_tile[DEPTH][TILE + PAD];
    u32 first_row = blockIdx.x * TILE, first_token = blockIdx.y * TILE;
    u32 line = threadIdx.x / 4, quad = threadIdx.x % 4 * 4;
    u32 my_row = threadIdx.x % 16 * 4, my_token = threadIdx.x / 16 * 4;
    float sums[4][4] = {};
    for (u32 k = 0; k < cols; k += DEPTH) {
        float w_quad[4], x_quad[4];
        load_quad(weights, rows, cols, first_row + line, k + quad, w_quad);
        load_quad(x, tokens, cols, first_token + line, k + quad, x_quad);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w_tile[quad + i][line] = w_quad[i];
            x_tile[quad + i][line] = x_quad[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            float4 w = *reinterpret_cast<const float4 *>(&w_tile[i][my_row]);
            float4 t = *reinterpret_cast<const float4 *>(&x_tile[i][my_token]);
            float ws[4] = {w.x, w.y, w.z, w.w}, ts[4] = {t.x, t.y, t.z, t.w};
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int b = 0; b < 4; b++) sums[a][b] = fmaf(ws[b], ts[a], sums[a][b]);
        }
    }
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int b = 0; b < 4; b++) {
            u32 token = first_token + my_token + a, row = first_row + my_row + b;
            if (token >= tokens || row >= rows) continue;
            float *at = y + static_cast<u64>(token) * y_stride + row;
            *at = keep ? *at + sums[a][b] : sums[a][b];
        }
}

#define PRODUCT(NAME, T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                    \
        NAME(const T *weights, const T *x, float *y, u32 rows, u32 cols, u32 tokens, u32 y_stride, int keep) {           \
        product(weights, x, y, rows, cols, tokens, y_stride, keep);                                                      \
    }

PRODUCT(product_f32, float)
PRODUCT(product_bf16, Bf16)
PRODUCT(product_f16, Half)
