// Norms of rows: one block of threads for each.

// out = x · weight / root of the mean square, or with a bias (x - mean) · weight / deviation + bias
extern "C" __global__ void norm_rows(const float *x, const float *weight, const float *bias, float eps, u32 width, float *out) {
    __shared__ float shared[WARP];
    x += static_cast<u64>(blockIdx.x) * width;
    out += static_cast<u64>(blockIdx.x) * width;
    float mean = 0.0f;
    if (bias) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
        mean = sum_of_block(sum, shared) / static_cast<float>(width);
    }
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float difference = x[i] - mean;
        squares = fmaf(difference, difference, squares);
    }
    float scale = 1.0f / sqrtf(sum_of_block(squares, shared) / static_cast<float>(width) + eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float normed = (x[i] - mean) * scale;
        out[i] = bias ? fmaf(normed, weight[i], bias[i]) : normed * weight[i];
    }
}
