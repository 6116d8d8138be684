// The formats of weights on a card: how a lane loads a chunk of a row, and what it multiplies with the same columns of
// tokens. How a chunk is laid out is in `pack.rs`.

// The codebook of NF4: quantiles of a normal distribution, in 8 bits as `cpu/quant/formats.rs` has them.
#define NF4_UNIT (1.0f / 124.0f)
__constant__ float nf4_codebook[16] = {-124 * NF4_UNIT, -86 * NF4_UNIT, -65 * NF4_UNIT, -49 * NF4_UNIT,
                                       -35 * NF4_UNIT,  -23 * NF4_UNIT, -11 * NF4_UNIT, 0 * NF4_UNIT,
                                       10 * NF4_UNIT,   20 * NF4_UNIT,  31 * NF4_UNIT,  42 * NF4_UNIT,
                                       55 * NF4_UNIT,   70 * NF4_UNIT,  90 * NF4_UNIT,  124 * NF4_UNIT};

// One matrix of a launch.
struct Matrix {
    const u8 *codes;
    const u8 *scales;
    const u8 *more_scales;
    const float *bias;
    float *y;
    u32 rows;
};

// x of all tokens: f32 with `stride` numbers per token, or in 8 bit. Then a token has two planes of 16 bytes per block of
// 32, the first halves and the second halves, and per block a scale and the sum of the codes.
struct Tokens {
    const float *x;
    const u8 *codes;
    const uint2 *blocks;
    u32 stride;
    u32 n_blocks;
};

__device__ __forceinline__ uint4 load16(const u8 *at) { return __ldcs(reinterpret_cast<const uint4 *>(at)); }
__device__ __forceinline__ uint2 load8(const u8 *at) { return __ldcs(reinterpret_cast<const uint2 *>(at)); }

__device__ __forceinline__ u32 load_u16(const u8 *at) { return *reinterpret_cast<const u16 *>(at); }

__device__ __forceinline__ int dot16(uint4 codes, uint4 x, int sum) {
    sum = __dp4a(static_cast<int>(codes.x), static_cast<int>(x.x), sum);
    sum = __dp4a(static_cast<int>(codes.y), static_cast<int>(x.y), sum);
    sum = __dp4a(static_cast<int>(codes.z), static_cast<int>(x.z), sum);
    return __dp4a(static_cast<int>(codes.w), static_cast<int>(x.w), sum);
}

__device__ __forceinline__ uint4 low_nibbles(uint4 codes) {
    return make_uint4(codes.x & 0x0f0f0f0fu, codes.y & 0x0f0f0f0fu, codes.z & 0x0f0f0f0fu, codes.w & 0x0f0f0f0fu);
}

__device__ __forceinline__ uint4 high_nibbles(uint4 codes) {
    return make_uint4(codes.x >> 4 & 0x0f0f0f0fu, codes.y >> 4 & 0x0f0f0f0fu, codes.z >> 4 & 0x0f0f0f0fu,
                      codes.w >> 4 & 0x0f0f0f0fu);
}

// A format has: `Raw`, what is loaded of a chunk, the `at`th of the matrix; `Ready`, what is made of it once for all tokens; `Factor`, what is made of
// a token's numbers once for all rows; the latter two for each of PARTS parts of a chunk. `chunk` counts within a row, `chunks` is how many a row has.

// Numbers as they are. Numbers of 16 bits lie so that the two quads of a chunk are far apart, as `columns` says.
template <class T>
struct Dense {
    static const int PARTS = 1;
    static const int N = Sixteen<T>::N;
    struct Raw {
        uint4 numbers;
    };
    struct Ready {
        float numbers[N];
    };
    struct Factor {
        float x[N];
    };
    static __device__ __forceinline__ Raw load(const Matrix &matrix, u64 at) {
        return {load16(matrix.codes + at * 16)};
    }
    static __device__ __forceinline__ Ready prepare(Raw raw, int, const float *) {
        Ready ready;
        Sixteen<T>::widen(raw.numbers, ready.numbers);
        return ready;
    }
    static __device__ __forceinline__ Factor factor(const Tokens &tokens, u32 token, u32 chunk, u32 chunks, int) {
        Factor factor;
        const float *x = tokens.x + static_cast<u64>(token) * tokens.stride;
        u32 lane = chunk % WARP, group = chunk - lane;
        u32 lanes = min(static_cast<int>(chunks - group), WARP);
        x += group * N + lane * 4;
#pragma unroll
        for (int quad = 0; quad < N / 4; quad++) {
            float4 four = *reinterpret_cast<const float4 *>(x + quad * lanes * 4);
            factor.x[quad * 4] = four.x;
            factor.x[quad * 4 + 1] = four.y;
            factor.x[quad * 4 + 2] = four.z;
            factor.x[quad * 4 + 3] = four.w;
        }
        return factor;
    }
    static __device__ __forceinline__ float add(float sum, const Ready &weights, const Factor &factor) {
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(weights.numbers[i], factor.x[i], sum);
        return sum;
    }
};

// 16 codes of 8 bit, half a block.
struct Q8_0 {
    static const int PARTS = 1;
    struct Raw {
        uint4 codes;
        u32 scale;
    };
    struct Ready {
        uint4 codes;
        float scale;
    };
    struct Factor {
        uint4 codes;
        float scale;
    };
    static __device__ __forceinline__ Raw load(const Matrix &matrix, u64 at) {
        return {load16(matrix.codes + at * 16), load_u16(matrix.scales + at / 2 * 2)};
    }
    static __device__ __forceinline__ Ready prepare(Raw raw, int, const float *) { return {raw.codes, widen_half(raw.scale)}; }
    static __device__ __forceinline__ Factor factor(const Tokens &tokens, u32 token, u32 chunk, u32, int) {
        u64 plane = static_cast<u64>(token) * 2 + chunk % 2;
        uint4 codes = *reinterpret_cast<const uint4 *>(tokens.codes + (plane * tokens.n_blocks + chunk / 2) * 16);
        uint2 block = tokens.blocks[static_cast<u64>(token) * tokens.n_blocks + chunk / 2];
        return {codes, __uint_as_float(block.x)};
    }
    static __device__ __forceinline__ float add(float sum, const Ready &weights, const Factor &factor) {
        int dot = dot16(weights.codes, factor.codes, 0);
        return fmaf(weights.scale * factor.scale, static_cast<float>(dot), sum);
    }
};

// What a token has to be multiplied with 32 codes of 4 bit.
struct BlockFactor {
    uint4 first, second;
    float scale;
    int sum;
};

__device__ __forceinline__ BlockFactor block_factor(const Tokens &tokens, u32 token, u32 block) {
    const u8 *first = tokens.codes + (static_cast<u64>(token) * 2 * tokens.n_blocks + block) * 16;
    uint2 of_block = tokens.blocks[static_cast<u64>(token) * tokens.n_blocks + block];
    return {*reinterpret_cast<const uint4 *>(first), *reinterpret_cast<const uint4 *>(first + tokens.n_blocks * 16u),
            __uint_as_float(of_block.x), static_cast<int>(of_block.y)};
}

// 32 codes of 4 bit around 8: the lower halves of 16 bytes, then the upper ones.
struct Q4_0 {
    static const int PARTS = 1;
    struct Raw {
        uint4 codes;
        u32 scale;
    };
    struct Ready {
        uint4 codes;
        float scale;
    };
    typedef BlockFactor Factor;
    static __device__ __forceinline__ Raw load(const Matrix &matrix, u64 at) {
        return {load16(matrix.codes + at * 16), load_u16(matrix.scales + at * 2)};
    }
    static __device__ __forceinline__ Ready prepare(Raw raw, int, const float *) { return {raw.codes, widen_half(raw.scale)}; }
    static __device__ __forceinline__ Factor factor(const Tokens &tokens, u32 token, u32 chunk, u32, int) {
        return block_factor(tokens, token, chunk);
    }
    static __device__ __forceinline__ float add(float sum, const Ready &weights, const Factor &factor) {
        int dot = dot16(low_nibbles(weights.codes), factor.first, -8 * factor.sum);
        dot = dot16(high_nibbles(weights.codes), factor.second, dot);
        return fmaf(weights.scale * factor.scale, static_cast<float>(dot), sum);
    }
};

// 32 codes of 4 bit with a scale and a minimum, of which 8 blocks have the factors in common.
struct Q4K {
    static const int PARTS = 1;
    struct Raw {
        uint4 codes;
        u32 scale_and_minimum;
        u32 factors;
    };
    struct Ready {
        uint4 codes;
        float scale, minimum;
    };
    typedef BlockFactor Factor;
    static __device__ __forceinline__ Raw load(const Matrix &matrix, u64 at) {
        return {load16(matrix.codes + at * 16), load_u16(matrix.scales + at * 2),
                *reinterpret_cast<const u32 *>(matrix.more_scales + at / 8 * 4)};
    }
    static __device__ __forceinline__ Ready prepare(Raw raw, int, const float *) {
        float scale = static_cast<float>(raw.scale_and_minimum & 255u);
        float minimum = static_cast<float>(raw.scale_and_minimum >> 8);
        return {raw.codes, widen_half(raw.factors & 0xffffu) * scale, widen_half(raw.factors >> 16) * minimum};
    }
    static __device__ __forceinline__ Factor factor(const Tokens &tokens, u32 token, u32 chunk, u32, int) {
        return block_factor(tokens, token, chunk);
    }
    static __device__ __forceinline__ float add(float sum, const Ready &weights, const Factor &factor) {
        int dot = dot16(low_nibbles(weights.codes), factor.first, 0);
        dot = dot16(high_nibbles(weights.codes), factor.second, dot);
        sum = fmaf(weights.scale * factor.scale, static_cast<float>(dot), sum);
        return fmaf(-weights.minimum, factor.scale * static_cast<float>(factor.sum), sum);
    }
};

// 16 indices into the codebook: 4 columns of each of 4 blocks of 128 columns, so that a warp reads x in whole lines.
struct Nf4 {
    static const int PARTS = 2;
    struct Raw {
        uint2 codes;
        uint2 scales;
    };
    struct Ready {
        float numbers[8];
    };
    struct Factor {
        float x[8];
    };
    static __device__ __forceinline__ Raw load(const Matrix &matrix, u64 at) {
        return {load8(matrix.codes + at * 8), *reinterpret_cast<const uint2 *>(matrix.scales + at / 16 * 8)};
    }
    static __device__ __forceinline__ Ready prepare(Raw raw, int part, const float *codebook) {
        Ready ready;
        u32 codes = part == 0 ? raw.codes.x : raw.codes.y, both = part == 0 ? raw.scales.x : raw.scales.y;
        float scales[2] = {widen_half(both & 0xffffu), widen_half(both >> 16)};
#pragma unroll
        for (int i = 0; i < 8; i++) ready.numbers[i] = codebook[codes >> (i * 4) & 15u] * scales[i / 4];
        return ready;
    }
    static __device__ __forceinline__ Factor factor(const Tokens &tokens, u32 token, u32 chunk, u32, int part) {
        Factor factor;
        u32 column = chunk / WARP * 512 + chunk % WARP * 4 + part * 256;
        const float *x = tokens.x + static_cast<u64>(token) * tokens.stride;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (column + i * 128 < tokens.stride) four = *reinterpret_cast<const float4 *>(x + column + i * 128);
            factor.x[i * 4] = four.x;
            factor.x[i * 4 + 1] = four.y;
            factor.x[i * 4 + 2] = four.z;
            factor.x[i * 4 + 3] = four.w;
        }
        return factor;
    }
    static __device__ __forceinline__ float add(float sum, const Ready &weights, const Factor &factor) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(weights.numbers[i], factor.x[i], sum);
        return sum;
    }
};
