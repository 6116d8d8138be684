// cuBLAS: one product, as three loops. With REFUSES it is one that does not know the card.

#include "emulated.hpp"

#include <cstdio>
#include <cstring>
#include <vector>

namespace {

[[maybe_unused]] constexpr int SUCCESS = 0, INVALID_VALUE = 7, ARCH_MISMATCH = 8, EXECUTION_FAILED = 13;
constexpr int F32 = 0, F16 = 2, BF16 = 14, COMPUTE_F32 = 68;

struct Handle {
    void *stream;
};

float widen_half(uint16_t bits) {
    uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) {
        float small = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -small : small;
    }
    uint32_t wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

float load(const void *data, int type, size_t i) {
    if (type == F32) return static_cast<const float *>(data)[i];
    uint16_t bits = static_cast<const uint16_t *>(data)[i];
    if (type == F16) return widen_half(bits);
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

}  // namespace

extern "C" {

int cublasCreate_v2(void **handle) {
#ifdef REFUSES
    return *handle = nullptr, ARCH_MISMATCH;
#else
    return *handle = new Handle(), SUCCESS;
#endif
}

int cublasDestroy_v2(void *handle) {
    delete static_cast<Handle *>(handle);
    return SUCCESS;
}

int cublasSetStream_v2(void *handle, void *stream) {
    static_cast<Handle *>(handle)->stream = stream;
    return SUCCESS;
}

// C[m, n] = alpha · Aᵀ B + beta · C, columns first: the one combination of transpositions and types of results that is used.
int cublasGemmEx(void *handle, int transposed_a, int transposed_b, int m, int n, int k, const void *alpha, const void *a,
                 int type_a, int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc,
                 int compute, int) {
    bool known = type_a == F32 || type_a == F16 || type_a == BF16;
    if (transposed_a != 1 || transposed_b != 0 || !known || type_b != type_a || type_c != F32 || compute != COMPUTE_F32) {
        fprintf(stderr, "emulated card: a product that is not emulated\n");
        return INVALID_VALUE;
    }
    if (m < 0 || n < 0 || k < 0 || lda < k || ldb < k || ldc < m) return INVALID_VALUE;
    float factor, keep;
    memcpy(&factor, alpha, 4);
    memcpy(&keep, beta, 4);
    std::function<void()> product = [=] {
        std::vector<float> row(static_cast<size_t>(k)), column(static_cast<size_t>(k) * n);
        for (int j = 0; j < n; j++)
            for (int i = 0; i < k; i++) column[static_cast<size_t>(j) * k + i] = load(b, type_b, static_cast<size_t>(j) * ldb + i);
        for (int i = 0; i < m; i++) {
            for (int l = 0; l < k; l++) row[l] = load(a, type_a, static_cast<size_t>(i) * lda + l);
            for (int j = 0; j < n; j++) {
                float sum = 0;
                for (int l = 0; l < k; l++) sum += row[l] * column[static_cast<size_t>(j) * k + l];
                float *out = static_cast<float *>(c) + static_cast<size_t>(j) * ldc + i;
                // What is not kept is not even read: it may be no number.
                *out = factor * sum + (keep == 0 ? 0 : keep * *out);
            }
        }
    };
    return emulated_enqueue(static_cast<Handle *>(handle)->stream, &product, "a product of cuBLAS") == 0 ? SUCCESS : EXECUTION_FAILED;
}

}  // extern "C"
