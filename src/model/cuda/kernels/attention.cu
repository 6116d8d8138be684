// Attention of new tokens over the pages of their sequences. Rows are pairs of a token and one of the query heads that share
// a key head; a tile is some rows of one sequence.
//
// Few tokens: a block of threads has a split of 256 keys, a key per thread for the scores, a part of a key's value per thread
// for the weighted sums; splits begin at fixed positions and are joined in order. Many tokens: a block goes over all keys, 32
// at a time. What a row does not see counts for nothing, not even as a factor.

#define SPLIT_KEYS 256
#define THREADS 256
#define WARPS (THREADS / WARP)

// Rows `first_row` to `first_row + rows` of a sequence: row r is query head r % group of its token r / group.
struct Tile {
    // Where its pages begin in the table.
    u32 first_page;
    // Among the tokens of all sequences, and in its own.
    u32 first_token, position;
    u32 first_row, rows;
    // Room for the partial results of the tile, counted in rows times key heads.
    u32 partial;
};

struct Call {
    const float *queries;
    const u64 *pages;
    const Tile *tiles;
    float *out;
    float *partials;
    u32 n_heads, n_kv_heads, head_dim, max_splits;
    float scale, softcap;
    // Keys that a row sees at most.
    u32 window;
    // [n_heads, 2]: what a score grows by with the position of the key, and a factor of that after it was rounded.
    const float *slopes;
    int rounded;
    // [n_heads]
    const float *sinks;

    __device__ __forceinline__ u32 group() const { return n_heads / n_kv_heads; }
    __device__ __forceinline__ u32 dim() const { return (head_dim + 15) / 16 * 16; }
};

// What a row sees: keys from `first` to before `end`.
struct Row {
    u32 token, head, first, end;
};

__device__ __forceinline__ Row row_of(const Call &call, const Tile &tile, u32 row) {
    u32 group = call.group(), place = (tile.first_row + row) / group;
    u32 end = tile.position + place + 1;
    return {tile.first_token + place, blockIdx.y * group + (tile.first_row + row) % group,
            end > call.window ? end - call.window : 0, end};
}

// Softmax of a row, unfinished: sums are relative to the largest score so far.
struct Running {
    float max, total;
};

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ Running begin(const Call &call, u32 head) {
    if (call.sinks) return {call.sinks[head], 1.0f};
    return {minus_infinity(), 0.0f};
}

// If all scores are minus infinity there is nothing to compare with.
__device__ __forceinline__ float base_of(float max) { return max == minus_infinity() ? 0.0f : max; }

// What a score becomes after the product with the key.
__device__ __forceinline__ float scored(const Call &call, const Row &row, u32 key, float score) {
    if (key < row.first || key >= row.end) return minus_infinity();
    if (call.softcap > 0.0f) score = call.softcap * tanhf(score / call.softcap);
    if (call.slopes) {
        float position = static_cast<float>(key), slope = call.slopes[row.head * 2];
        float bias = slope * position;
        if (call.rounded) bias = widen_bf16(to_bf16(slope * widen_bf16(to_bf16(position))));
        score += bias * call.slopes[row.head * 2 + 1];
    }
    return score;
}

// The scaled queries of a tile in shared memory, [rows, stride], filled up with zeros.
__device__ __forceinline__ void load_queries(const Call &call, const Tile &tile, u32 rows, u32 stride, float *queries) {
    for (u32 i = threadIdx.x; i < rows * stride; i += THREADS) {
        u32 r = i / stride, d = i % stride;
        float number = 0.0f;
        if (r < tile.rows && d < call.head_dim) {
            Row row = row_of(call, tile, r);
            number = call.queries[(static_cast<u64>(row.token) * call.n_heads + row.head) * call.head_dim + d] * call.scale;
        }
        queries[i] = number;
    }
}

template <class T>
__device__ __forceinline__ Page<T> page_of(const Call &call, const Tile &tile, u32 key) {
    return {reinterpret_cast<u8 *>(call.pages[tile.first_page + key / PAGE_TOKENS]), call.dim()};
}

// Consecutive numbers of a value: at most 8, so that sums of several rows stay in registers.
template <class T>
struct ValuePart {
    static const int N = Sixteen<T>::N;
    static __device__ __forceinline__ void load(const T *at, float *out) {
        Sixteen<T>::widen(*reinterpret_cast<const uint4 *>(at), out);
    }
};

template <>
struct ValuePart<signed char> {
    static const int N = 8;
    static __device__ __forceinline__ void load(const signed char *at, float *out) {
        uint2 raw = *reinterpret_cast<const uint2 *>(at);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = static_cast<float>(static_cast<signed char>((i < 4 ? raw.x : raw.y) >> (i % 4 * 8)));
    }
};

template <class T>
struct IsBytes {
    static const bool YES = false;
};
template <>
struct IsBytes<signed char> {
    static const bool YES = true;
};

// The splits that a tile sees anything of: from `first` to before `end`.
__device__ __forceinline__ void splits_of(const Call &call, const Tile &tile, u32 &first, u32 &end) {
    first = row_of(call, tile, 0).first / SPLIT_KEYS;
    end = (row_of(call, tile, tile.rows - 1).end + SPLIT_KEYS - 1) / SPLIT_KEYS;
}

__device__ __forceinline__ float *partial_of(const Call &call, const Tile &tile, u32 r, u32 split) {
    u64 place = (static_cast<u64>(tile.partial) + r) * call.n_kv_heads + blockIdx.y;
    return call.partials + (place * call.max_splits + split) * (call.dim() + 2);
}

// Joins a split to those before it, for one of its sums.
__device__ __forceinline__ void join(Running &whole, float &sum, float max, float total, float part) {
    if (max == minus_infinity() && total == 0.0f) return;
    float larger = max > whole.max ? max : whole.max, base = base_of(larger);
    float keep = expf(whole.max - base), take = expf(max - base);
    whole.total = whole.total * keep + total * take;
    sum = sum * keep + part * take;
    whole.max = larger;
}

// Block x is a split, y a key head, z a tile of at most R rows. Shared memory: [R, dim] queries, [R, SPLIT_KEYS] shares,
// [2, WARPS, R] of warps, [THREADS, part of a value] sums.
template <class T, int R>
__device__ __forceinline__ void attend_few(const Call &call) {
    const int N = Sixteen<T>::N, VALUES = ValuePart<T>::N;
    Tile tile = call.tiles[blockIdx.z];
    u32 first_split, end_split, split = blockIdx.x, dim = call.dim();
    splits_of(call, tile, first_split, end_split);
    if (split < first_split || split >= end_split) return;
    SHARED_MEMORY(float, queries);
    float *shares = queries + R * dim, *of_warps = shares + R * SPLIT_KEYS, *sums = of_warps + 2 * WARPS * R;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 first_key = split * SPLIT_KEYS, end = row_of(call, tile, tile.rows - 1).end;
    u32 n_keys = end - first_key < SPLIT_KEYS ? end - first_key : SPLIT_KEYS;
    load_queries(call, tile, R, dim, queries);
    __syncthreads();

    float scores[R] = {};
    u32 key = first_key + threadIdx.x;
    float value_scale = 1.0f;
    if (threadIdx.x < n_keys) {
        Page<T> page = page_of<T>(call, tile, key);
        const uint4 *parts = reinterpret_cast<const uint4 *>(page.key_part(blockIdx.y, key % PAGE_TOKENS, 0));
#pragma unroll 4
        for (u32 part = 0; part < dim / N; part++) {
            float numbers[N];
            Sixteen<T>::widen(parts[part * PAGE_TOKENS], numbers);
#pragma unroll
            for (int r = 0; r < R; r++) {
#pragma unroll
                for (int i = 0; i < N; i += 4) {
                    float4 query = *reinterpret_cast<const float4 *>(queries + r * dim + part * N + i);
                    scores[r] = fmaf(numbers[i], query.x, scores[r]);
                    scores[r] = fmaf(numbers[i + 1], query.y, scores[r]);
                    scores[r] = fmaf(numbers[i + 2], query.z, scores[r]);
                    scores[r] = fmaf(numbers[i + 3], query.w, scores[r]);
                }
            }
        }
        if (IsBytes<T>::YES) {
            const float *scales = page.scales(blockIdx.y, call.n_kv_heads) + key % PAGE_TOKENS;
            value_scale = scales[PAGE_TOKENS];
#pragma unroll
            for (int r = 0; r < R; r++) scores[r] *= scales[0];
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        bool seen = threadIdx.x < n_keys && r < tile.rows;
        scores[r] = seen ? scored(call, row_of(call, tile, r), key, scores[r]) : minus_infinity();
        float max = max_of_warp(scores[r]);
        if (lane == 0) of_warps[warp * R + r] = max;
    }
    __syncthreads();
    float largest[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        largest[r] = of_warps[r];
        for (int other = 1; other < WARPS; other++) largest[r] = fmaxf(largest[r], of_warps[other * R + r]);
        float share = expf(scores[r] - base_of(largest[r]));
        float total = sum_of_warp(share);
        if (lane == 0) of_warps[(WARPS + warp) * R + r] = total;
        shares[r * SPLIT_KEYS + threadIdx.x] = share == 0.0f ? 0.0f : share * value_scale;
    }
    __syncthreads();

    // Threads side by side have the parts of a value, the others other keys.
    u32 parts = dim / VALUES, places = THREADS / parts, place = threadIdx.x / parts, part = threadIdx.x % parts;
    float weighted[R][VALUES] = {};
    for (u32 k = place; place < places && k < n_keys; k += places) {
        Page<T> page = page_of<T>(call, tile, first_key + k);
        float numbers[VALUES];
        ValuePart<T>::load(page.value_number(blockIdx.y, k % PAGE_TOKENS, part * VALUES), numbers);
#pragma unroll
        for (int r = 0; r < R; r++) {
            float share = shares[r * SPLIT_KEYS + k];
            if (share == 0.0f) continue;
#pragma unroll
            for (int i = 0; i < VALUES; i++) weighted[r][i] = fmaf(share, numbers[i], weighted[r][i]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (place < places)
#pragma unroll
            for (int i = 0; i < VALUES; i++) sums[place * dim + part * VALUES + i] = weighted[r][i];
        __syncthreads();
        float total = 0.0f;
        for (int other = 0; other < WARPS; other++) total += of_warps[(WARPS + other) * R + r];
        for (u32 d = threadIdx.x; d < dim && r < tile.rows; d += THREADS) {
            float sum = 0.0f;
            for (u32 other = 0; other < places; other++) sum += sums[other * dim + d];
            if (call.max_splits > 1) {
                float *partial = partial_of(call, tile, r, split);
                partial[d] = sum;
                if (d == 0) {
                    partial[dim] = largest[r];
                    partial[dim + 1] = total;
                }
            } else if (d < call.head_dim) {
                Row row = row_of(call, tile, r);
                Running whole = begin(call, row.head);
                float joined = 0.0f;
                join(whole, joined, largest[r], total, sum);
                call.out[(static_cast<u64>(row.token) * call.n_heads + row.head) * call.head_dim + d] = joined / whole.total;
            }
        }
        __syncthreads();
    }
}

// Block x is a row of a tile, y a key head, z a tile.
extern "C" __global__ void join_splits(const uint2 *tiles, float *partials, float *out, u32 n_heads, u32 n_kv_heads,
                                       u32 head_dim, u32 max_splits, u32 window, const float *sinks) {
    Call call = {0, 0, reinterpret_cast<const Tile *>(tiles), out, partials, n_heads, n_kv_heads, head_dim, max_splits,
                 0.0f, 0.0f, window, 0, 0, sinks};
    Tile tile = call.tiles[blockIdx.z];
    if (blockIdx.x >= tile.rows) return;
    Row row = row_of(call, tile, blockIdx.x);
    u32 first, end;
    splits_of(call, tile, first, end);
    for (u32 d = threadIdx.x; d < head_dim; d += blockDim.x) {
        Running whole = begin(call, row.head);
        float sum = 0.0f;
        for (u32 split = first; split < end; split++) {
            const float *partial = partial_of(call, tile, blockIdx.x, split);
            join(whole, sum, partial[call.dim()], partial[call.dim() + 1], partial[d]);
        }
        out[(static_cast<u64>(row.token) * n_heads + row.head) * head_dim + d] = sum / whole.total;
    }
}

#define MANY_KEYS 32
// Keeps rows of shared memory on different banks.
#define PAD 4

// Keys or values of MANY_KEYS tokens from `first_key` on as f32, [MANY_KEYS, stride]; zeros from `end` on.
template <class T, bool KEYS>
__device__ __forceinline__ void load_tile(const Call &call, const Tile &tile, u32 first_key, u32 end, u32 stride, float *out) {
    const int N = Sixteen<T>::N;
    u32 parts = call.dim() / N;
    for (u32 i = threadIdx.x; i < MANY_KEYS * parts; i += THREADS) {
        // Threads side by side read what lies side by side: tokens of keys, parts of values.
        u32 in_page = i % (PAGE_TOKENS * parts), k = i / (PAGE_TOKENS * parts) * PAGE_TOKENS;
        k += KEYS ? in_page % PAGE_TOKENS : in_page / parts;
        u32 part = KEYS ? in_page / PAGE_TOKENS : in_page % parts;
        float numbers[N] = {};
        if (first_key + k < end) {
            Page<T> page = page_of<T>(call, tile, first_key + k);
            const u8 *at = page.key_part(blockIdx.y, k % PAGE_TOKENS, part);
            if (!KEYS) at = reinterpret_cast<const u8 *>(page.value_number(blockIdx.y, k % PAGE_TOKENS, part * N));
            Sixteen<T>::widen(*reinterpret_cast<const uint4 *>(at), numbers);
        }
#pragma unroll
        for (int j = 0; j < N; j += 4)
            *reinterpret_cast<float4 *>(out + k * stride + part * N + j) =
                make_float4(numbers[j], numbers[j + 1], numbers[j + 2], numbers[j + 3]);
    }
}

// Block y is a key head, z a tile of at most R rows. Heads have at most 128 · QUADS numbers. Shared memory: [R, stride]
// queries, [MANY_KEYS, stride] keys or values, [R, MANY_KEYS + PAD] scores.
template <class T, int R, int QUADS>
__device__ __forceinline__ void attend_many(const Call &call) {
    const int OWN = R / WARPS;
    // Of the products of queries with keys each thread has those of some rows and some keys, which lie that far apart.
    const int ROWS_APART = R < 32 ? R : 32, KEYS_APART = THREADS / ROWS_APART;
    const int ROWS = R / ROWS_APART, KEYS = MANY_KEYS / KEYS_APART;
    Tile tile = call.tiles[blockIdx.z];
    u32 stride = call.dim() + PAD, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    SHARED_MEMORY(float, queries);
    float *numbers = queries + R * stride, *scores = numbers + MANY_KEYS * stride;
    const u32 score_stride = MANY_KEYS + PAD;
    u32 first = row_of(call, tile, 0).first / MANY_KEYS * MANY_KEYS, end = row_of(call, tile, tile.rows - 1).end;
    load_queries(call, tile, R, stride, queries);
    // A warp's own rows: their softmax, and their sums, of which a lane has some quads.
    Running running[OWN];
    float sums[OWN][QUADS][4] = {};
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        u32 r = warp * OWN + i;
        running[i] = begin(call, row_of(call, tile, r < tile.rows ? r : 0).head);
    }
    for (u32 first_key = first; first_key < end; first_key += MANY_KEYS) {
        __syncthreads();
        load_tile<T, true>(call, tile, first_key, end, stride, numbers);
        __syncthreads();
        float products[ROWS][KEYS] = {};
        u32 key_lane = threadIdx.x % KEYS_APART, row_place = threadIdx.x / KEYS_APART;
        for (u32 d = 0; d < call.dim(); d += 4) {
            float4 key[KEYS];
#pragma unroll
            for (int j = 0; j < KEYS; j++)
                key[j] = *reinterpret_cast<const float4 *>(numbers + (key_lane + KEYS_APART * j) * stride + d);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                float4 query = *reinterpret_cast<const float4 *>(queries + (row_place + ROWS_APART * i) * stride + d);
#pragma unroll
                for (int j = 0; j < KEYS; j++) {
                    products[i][j] = fmaf(key[j].x, query.x, products[i][j]);
                    products[i][j] = fmaf(key[j].y, query.y, products[i][j]);
                    products[i][j] = fmaf(key[j].z, query.z, products[i][j]);
                    products[i][j] = fmaf(key[j].w, query.w, products[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < KEYS; j++)
                scores[(row_place + ROWS_APART * i) * score_stride + key_lane + KEYS_APART * j] = products[i][j];
        __syncthreads();
        load_tile<T, false>(call, tile, first_key, end, stride, numbers);
        float key_scale = 1.0f, value_scale = 1.0f;
        if (IsBytes<T>::YES && first_key + lane < end) {
            const float *scales = page_of<T>(call, tile, first_key + lane).scales(blockIdx.y, call.n_kv_heads);
            key_scale = scales[lane % PAGE_TOKENS];
            value_scale = scales[PAGE_TOKENS + lane % PAGE_TOKENS];
        }
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            u32 r = warp * OWN + i;
            float score = scores[r * score_stride + lane];
            if (IsBytes<T>::YES) score *= key_scale;
            score = r < tile.rows ? scored(call, row_of(call, tile, r), first_key + lane, score) : minus_infinity();
            float max = fmaxf(running[i].max, max_of_warp(score)), base = base_of(max);
            float shrink = expf(running[i].max - base), share = expf(score - base);
            running[i].total = running[i].total * shrink + sum_of_warp(share);
            running[i].max = max;
#pragma unroll
            for (int q = 0; q < QUADS; q++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][q][j] *= shrink;
            scores[r * score_stride + lane] = share == 0.0f ? 0.0f : share * value_scale;
        }
        __syncthreads();
        for (u32 k = 0; k < MANY_KEYS; k += 4) {
#pragma unroll
            for (int q = 0; q < QUADS; q++) {
                u32 quad = lane + q * WARP;
                if (quad * 4 >= call.dim()) continue;
                float4 values[4];
#pragma unroll
                for (int j = 0; j < 4; j++) values[j] = *reinterpret_cast<const float4 *>(numbers + (k + j) * stride + quad * 4);
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    float4 four = *reinterpret_cast<const float4 *>(scores + (warp * OWN + i) * score_stride + k);
                    float shares[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        if (shares[j] == 0.0f) continue;
                        sums[i][q][0] = fmaf(shares[j], values[j].x, sums[i][q][0]);
                        sums[i][q][1] = fmaf(shares[j], values[j].y, sums[i][q][1]);
                        sums[i][q][2] = fmaf(shares[j], values[j].z, sums[i][q][2]);
                        sums[i][q][3] = fmaf(shares[j], values[j].w, sums[i][q][3]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        u32 r = warp * OWN + i;
        if (r >= tile.rows) continue;
        Row row = row_of(call, tile, r);
        float *out = call.out + (static_cast<u64>(row.token) * call.n_heads + row.head) * call.head_dim;
#pragma unroll
        for (int q = 0; q < QUADS; q++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 d = (lane + q * WARP) * 4 + j;
                if (d < call.head_dim) out[d] = sums[i][q][j] / running[i].total;
            }
    }
}

#define ATTEND(NAME, ...)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                \
        NAME(const float *queries, const u64 *pages, const uint2 *tiles, float *out, float *partials, u32 n_heads,       \
             u32 n_kv_heads, u32 head_dim, u32 max_splits, float scale, float softcap, u32 window, const float *slopes,  \
             int rounded, const float *sinks) {                                                                          \
        Call call = {queries,    pages,    reinterpret_cast<const Tile *>(tiles),                                        \
                     out,        partials, n_heads,                                                                      \
                     n_kv_heads, head_dim, max_splits,                                                                   \
                     scale,      softcap,  window,                                                                       \
                     slopes,     rounded,  sinks};                                                                       \
        __VA_ARGS__(call);                                                                                               \
    }

ATTEND(few_1, attend_few<NUMBER, 1>)
ATTEND(few_4, attend_few<NUMBER, 4>)
ATTEND(few_8, attend_few<NUMBER, 8>)
ATTEND(many_64, attend_many<NUMBER, 64, 1>)
ATTEND(many_32, attend_many<NUMBER, 32, 2>)
ATTEND(many_16, attend_many<NUMBER, 16, 2>)
