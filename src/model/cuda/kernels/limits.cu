// What a card does at best: reading memory and nothing else, and numbers to read and to multiply.

// As in the host's wrapper: each thread has so many loads of 16 bytes under way, so many times.
#define AHEAD 8
#define ROUNDS 4

// Each block reads a part; each warp writes the sum of what it has read, without which nothing would have to be.
extern "C" __global__ void read_all(const uint4 *numbers, u32 *sums) {
    const uint4 *mine = numbers + static_cast<u64>(blockIdx.x) * blockDim.x * (AHEAD * ROUNDS) + threadIdx.x;
    u32 sum = 0;
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++, mine += AHEAD * blockDim.x) {
        uint4 raw[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) raw[i] = __ldcs(mine + i * blockDim.x);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) sum += raw[i].x + raw[i].y + raw[i].z + raw[i].w;
    }
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2)
        sum += static_cast<u32>(__shfl_xor_sync(ALL_LANES, static_cast<int>(sum), lanes));
    if (threadIdx.x % WARP == 0) sums[blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP] = sum;
}

// From -1 to 1.
__device__ __forceinline__ u32 noise(u32 bits) {
    return to_bf16(static_cast<float>(static_cast<short>(bits)) * (1.0f / 32768.0f));
}

// Two numbers in bf16 in each word, without a pattern: a card multiplies zeros faster than what models are made of.
extern "C" __global__ void make_noise(u32 *words, u64 n) {
    u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        u32 x = static_cast<u32>(i) * 0x9e3779b9u;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15) * 0x846ca68bu;
        x ^= x >> 16;
        words[i] = noise(x) | noise(x >> 16) << 16;
    }
}
