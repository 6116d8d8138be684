// What happens to single numbers between the projections.

#define FIRST (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x)
#define STEP (static_cast<u64>(gridDim.x) * blockDim.x)

// Numbered as in the host's wrapper.
enum { SILU, GELU, GELU_TANH, RELU, CLAMPED_SWIGLU };

// The slope inside GPT-OSS's gate.
#define CLAMPED_SLOPE 1.702f

__device__ __forceinline__ float activated(int kind, float limit, float x) {
    switch (kind) {
        case SILU:
            return x / (1.0f + expf(-x));
        case GELU:
            return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case RELU:
            return fmaxf(x, 0.0f);
        default:
            x = fminf(x, limit);
            return x / (1.0f + expf(-CLAMPED_SLOPE * x));
    }
}

extern "C" __global__ void add(float *x, const float *y, u64 n) {
    for (u64 i = FIRST; i < n; i += STEP) x[i] += y[i];
}

extern "C" __global__ void activate(float *x, u64 n, int kind, float limit) {
    for (u64 i = FIRST; i < n; i += STEP) x[i] = activated(kind, limit, x[i]);
}

// gate := activation(gate) · up
extern "C" __global__ void activate_gated(float *gate, const float *up, u64 n, int kind, float limit) {
    for (u64 i = FIRST; i < n; i += STEP) {
        float factor = up[i];
        if (kind == CLAMPED_SWIGLU) factor = fminf(fmaxf(factor, -limit), limit) + 1.0f;
        gate[i] = activated(kind, limit, gate[i]) * factor;
    }
}

// Row r of `out` becomes row rows[r] of `x`.
extern "C" __global__ void gather_rows(const float *x, const u32 *rows, u32 width, float *out) {
    const float *from = x + static_cast<u64>(rows[blockIdx.x]) * width;
    float *to = out + static_cast<u64>(blockIdx.x) * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

// Adds weights[r] times row r of `x` to row rows[r] of `out`. No row may be there twice.
extern "C" __global__ void scatter_add_rows(const float *x, const u32 *rows, const float *weights, u32 width, float *out) {
    const float *from = x + static_cast<u64>(blockIdx.x) * width;
    float *to = out + static_cast<u64>(rows[blockIdx.x]) * width;
    float weight = weights[blockIdx.x];
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = fmaf(weight, from[i], to[i]);
}
