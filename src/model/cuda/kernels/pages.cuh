// Pages of a cache on a card: 16 tokens of one sequence in one block. `dim` is the size of a head filled up to a multiple
// of 16.
//
//     head 0: keys [16 bytes of a key after the other][16 tokens][16 bytes] · values [16 tokens][dim]      head 1: …
//     i8 only, after all heads, per head: 16 scales of keys · 16 scales of values

#define PAGE_TOKENS 16

// Where things are in a page of numbers T.
template <class T>
struct Page {
    static const int N = 16 / sizeof(T);
    u8 *start;
    u32 dim;

    __device__ __forceinline__ u8 *keys(u32 head) const { return start + static_cast<u64>(head) * 2 * PAGE_TOKENS * dim * sizeof(T); }
    __device__ __forceinline__ u8 *values(u32 head) const { return keys(head) + PAGE_TOKENS * dim * sizeof(T); }
    // 16 bytes of the key of a token.
    __device__ __forceinline__ u8 *key_part(u32 head, u32 token, u32 part) const {
        return keys(head) + (part * PAGE_TOKENS + token) * 16;
    }
    __device__ __forceinline__ T *key_number(u32 head, u32 token, u32 i) const {
        return reinterpret_cast<T *>(key_part(head, token, i / N)) + i % N;
    }
    __device__ __forceinline__ T *value_number(u32 head, u32 token, u32 i) const {
        return reinterpret_cast<T *>(values(head)) + token * dim + i;
    }
    __device__ __forceinline__ float *scales(u32 head, u32 n_heads) const {
        return reinterpret_cast<float *>(keys(n_heads)) + head * 2 * PAGE_TOKENS;
    }
};
