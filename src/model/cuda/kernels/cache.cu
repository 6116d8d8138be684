// Queries and keys turned by their positions, and keys and values into the pages of their sequences. A warp has one head of
// one token.

struct Turn {
    // [tokens, 2, half]: cosines, then sines; none if nothing is turned.
    const float *angles;
    u32 half;

    // Numbers i of a head after turning; number i together with number i + half.
    __device__ __forceinline__ float of(const float *head, u32 token, u32 i) const {
        if (i >= 2 * half) return head[i];
        u32 pair = i < half ? i : i - half;
        const float *of_token = angles + static_cast<u64>(token) * 2 * half;
        float c = of_token[pair], s = of_token[half + pair];
        float a = head[pair], b = head[pair + half];
        return i < half ? a * c - b * s : b * c + a * s;
    }
};

__device__ __forceinline__ float size_of(float x) { return __uint_as_float(__float_as_uint(x) & 0x7fffffffu); }

// What a key or a value becomes in a page, number by number; `number` gives them, zeros after the head included.
template <class T, class Number, class Place>
__device__ __forceinline__ void write_head(u32 dim, float *, Number number, Place place, T) {
    for (u32 i = threadIdx.x % WARP; i < dim; i += WARP) narrow(number(i), *place(i));
}

// Rounded to whole multiples of a scale, the largest to 127 of them. One that is not finite makes the scale no number, and so
// all of them.
template <class Number, class Place>
__device__ __forceinline__ void write_head(u32 dim, float *scale, Number number, Place place, signed char) {
    u32 lane = threadIdx.x % WARP;
    float largest = 0.0f, strange = 0.0f;
    for (u32 i = lane; i < dim; i += WARP) {
        float size = size_of(number(i));
        if (!(size < __uint_as_float(0x7f800000u))) strange = 1.0f;
        largest = fmaxf(largest, size);
    }
    largest = max_of_warp(largest);
    bool finite = max_of_warp(strange) == 0.0f;
    float per_number = finite ? largest / 127.0f : __uint_as_float(0x7fc00000u);
    float per_scale = per_number > 0.0f ? 127.0f / largest : 0.0f;
    for (u32 i = lane; i < dim; i += WARP) {
        float rounded = number(i) * per_scale + 12582912.0f;
        *place(i) = finite ? static_cast<signed char>(static_cast<int>(__float_as_uint(rounded) - 0x4b400000u)) : 0;
    }
    if (lane == 0) *scale = per_number;
}

// Heads of queries first, then those of keys and values. `places` has for each token its position and where its sequence's
// pages begin in `pages`.
template <class T>
__device__ __forceinline__ void turn_and_cache(float *queries, const float *keys, const float *values, Turn turn,
                                               const uint2 *places, const u64 *pages, u32 n_heads, u32 n_kv_heads,
                                               u32 head_dim, u32 n_tokens) {
    u32 per_token = n_heads + n_kv_heads;
    u64 i = (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    u32 token = static_cast<u32>(i / per_token), head = static_cast<u32>(i % per_token), lane = threadIdx.x % WARP;
    if (token >= n_tokens) return;
    if (head < n_heads) {
        float *query = queries + (static_cast<u64>(token) * n_heads + head) * head_dim;
        for (u32 pair = lane; pair < turn.half; pair += WARP) {
            float first = turn.of(query, token, pair), second = turn.of(query, token, pair + turn.half);
            query[pair] = first;
            query[pair + turn.half] = second;
        }
        return;
    }
    head -= n_heads;
    uint2 place = places[token];
    Page<T> page = {reinterpret_cast<u8 *>(pages[place.y + place.x / PAGE_TOKENS]), (head_dim + 15) / 16 * 16};
    u32 slot = place.x % PAGE_TOKENS;
    u64 at = (static_cast<u64>(token) * n_kv_heads + head) * head_dim;
    float *scales = page.scales(head, n_kv_heads) + slot;
    write_head(page.dim, scales, [&](u32 i) { return i < head_dim ? turn.of(keys + at, token, i) : 0.0f; },
               [&](u32 i) { return page.key_number(head, slot, i); }, T());
    write_head(page.dim, scales + PAGE_TOKENS, [&](u32 i) { return i < head_dim ? values[at + i] : 0.0f; },
               [&](u32 i) { return page.value_number(head, slot, i); }, T());
}

#define TURN_AND_CACHE(NAME, T)                                                                                          \
    extern "C" __global__ void NAME(float *queries, const float *keys, const float *values, const float *angles,         \
                                    u32 half, const uint2 *places, const u64 *pages, u32 n_heads, u32 n_kv_heads,        \
                                    u32 head_dim, u32 n_tokens) {                                                        \
        turn_and_cache<T>(queries, keys, values, {angles, half}, places, pages, n_heads, n_kv_heads, head_dim, n_tokens); \
    }

TURN_AND_CACHE(cache_f32, float)
TURN_AND_CACHE(cache_bf16, Bf16)
TURN_AND_CACHE(cache_f16, Half)
TURN_AND_CACHE(cache_i8, signed char)
