// y = x · Wᵀ for few tokens, in one format of weights (`FORMAT`, said in front of this text): bound by reading the weights,
// so each is read once for all tokens of a group, and a warp has the next ones under way while it multiplies.
//
// A warp computes ROWS rows for up to M tokens. Its lanes take chunks of a row by turns, each chunk one load; `splits` warps
// share a row's chunks. Which lane adds what in which order does not depend on the number of tokens, so a token's y are the
// same bits alone and in a batch.

#define ROWS 4
#define THREADS 256

struct Work {
    Matrix matrices[3];
    Tokens tokens;
    u32 n_tokens;
    // Chunks of a row, and warps that share them.
    u32 chunks, splits;
    int accumulate;
};

// The products of ROWS rows with M tokens over the chunks of this warp, summed over its lanes.
template <class F, int M>
__device__ __forceinline__ void multiply(const Work &work, const Matrix &matrix, u32 first_row, u32 first_token, u32 split,
                                         const float *codebook, float (&sums)[ROWS][M]) {
    u32 lane = threadIdx.x % WARP, step = work.splits * WARP;
    // Chunks of each row that are loaded before the first is multiplied: what registers there are.
    const int AHEAD = M == 1 ? 2 : 1;
    u32 last = work.n_tokens - 1;
    // The memory of a matrix is whole groups of rows.
    u64 start = static_cast<u64>(first_row) * work.chunks;
#pragma unroll 1
    for (u32 chunk = split * WARP + lane; chunk < work.chunks; chunk += AHEAD * step) {
        typename F::Raw raw[AHEAD][ROWS];
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ahead++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (chunk + ahead * step < work.chunks)
                    raw[ahead][r] = F::load(matrix, start + r * work.chunks + chunk + ahead * step);
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ahead++) {
            if (chunk + ahead * step >= work.chunks) break;
#pragma unroll
            for (int part = 0; part < F::PARTS; part++) {
                typename F::Ready ready[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; r++) ready[r] = F::prepare(raw[ahead][r], part, codebook);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    u32 token = min(static_cast<int>(first_token + m), static_cast<int>(last));
                    typename F::Factor factor = F::factor(work.tokens, token, chunk + ahead * step, work.chunks, part);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) sums[r][m] = F::add(sums[r][m], ready[r], factor);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int m = 0; m < M; m++) sums[r][m] = sum_of_warp(sums[r][m]);
}

// Block x is a group of M tokens, block y some groups of rows: tokens first, so that groups that need the same weights run
// side by side and find them in the cache.
template <class F, int M>
__device__ __forceinline__ void few(const Work &work) {
    __shared__ float codebook[16];
    __shared__ float parts[THREADS / WARP][ROWS * M];
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_codebook[threadIdx.x];
    __syncthreads();
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 split = warp % work.splits, group = (blockIdx.y * (THREADS / WARP) + warp) / work.splits;
    Matrix matrix = work.matrices[0];
#pragma unroll
    for (int next = 1; next < 3; next++) {
        u32 groups = (matrix.rows + ROWS - 1) / ROWS;
        if (group >= groups) {
            group -= groups;
            matrix = work.matrices[next];
        }
    }
    bool any = group * ROWS < matrix.rows;
    u32 first_row = group * ROWS, first_token = blockIdx.x * M;
    float sums[ROWS][M] = {};
    if (any) multiply<F, M>(work, matrix, first_row, first_token, split, codebook, sums);
    if (work.splits > 1) {
        if (lane == 0)
#pragma unroll
            for (int i = 0; i < ROWS * M; i++) parts[warp][i] = sums[i % ROWS][i / ROWS];
        __syncthreads();
    }
    if (!any || split != 0) return;
#pragma unroll
    for (int first = 0; first < ROWS * M; first += WARP) {
        u32 i = first + lane;
        if (i >= ROWS * M) break;
        float sum = 0.0f;
        if (work.splits > 1) {
            for (u32 other = 0; other < work.splits; other++) sum += parts[warp + other][i];
        } else {
#pragma unroll
            for (int j = 0; j < WARP && first + j < ROWS * M; j++)
                if (lane == j) sum = sums[(first + j) % ROWS][(first + j) / ROWS];
        }
        u32 row = first_row + i % ROWS, token = first_token + i / ROWS;
        if (row >= matrix.rows || token >= work.n_tokens) continue;
        float *y = matrix.y + static_cast<u64>(token) * matrix.rows + row;
        if (matrix.bias) sum += matrix.bias[row];
        *y = work.accumulate ? *y + sum : sum;
    }
}

#define FEW(NAME, M, BLOCKS)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                                \
        NAME(const u8 *codes0, const u8 *scales0, const u8 *more0, const float *bias0, float *y0, u32 rows0,             \
             const u8 *codes1, const u8 *scales1, const u8 *more1, const float *bias1, float *y1, u32 rows1,             \
             const u8 *codes2, const u8 *scales2, const u8 *more2, const float *bias2, float *y2, u32 rows2,             \
             const float *x, const u8 *x_codes, const uint2 *x_blocks, u32 stride, u32 n_blocks, u32 n_tokens,           \
             u32 chunks, u32 splits, int accumulate) {                                                                   \
        few<FORMAT, M>({{{codes0, scales0, more0, bias0, y0, rows0},                                                     \
                         {codes1, scales1, more1, bias1, y1, rows1},                                                     \
                         {codes2, scales2, more2, bias2, y2, rows2}},                                                    \
                        {x, x_codes, x_blocks, stride, n_blocks},                                                        \
                        n_tokens, chunks, splits, accumulate});                                                          \
    }

FEW(few_1, 1, 2)
FEW(few_4, 4, 2)
FEW(few_8, 8, 2)
FEW(few_16, 16, 1)
