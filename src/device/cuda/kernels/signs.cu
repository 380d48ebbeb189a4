// Products of packed sign matrices with vectors, and their unpacking.
//
// The layout is that of BitMatrix: bit j of byte c * rows + i is the sign (set: +1) of row i and
// column 8c + j; columns beyond the last one are zero bits.

#include <cstdint>

// Rows of a block, one per thread.
constexpr unsigned ROWS = 128;
// Column groups (of eight columns) whose tables a block holds at a time.
constexpr unsigned GROUPS = 16;

// Partial products of one split of the columns with TOKENS vectors.
//
// For every four columns a block tabulates the sixteen sums (+-x0 +-x1 +-x2 +-x3) of each vector in
// shared memory. The sixteen entries lie in different banks and equal addresses are broadcast, so
// whatever the rows of a warp select is read without conflicts. Neighbouring threads read
// neighbouring bytes.
//
// x: [splits_in, tokens, cols], summed over the first dimension and multiplied with scale (one per
// column, or null). out: [gridDim.y, tokens, rows]. Blocks: x over rows, y over splits of
// groups_per_split column groups, z over tiles of TOKENS tokens.
template <unsigned TOKENS>
__device__ void product(const uint8_t *bytes, unsigned rows, unsigned cols, const float *x,
                        unsigned splits_in, const float *scale, unsigned tokens,
                        unsigned groups_per_split, float *out) {
    __shared__ float values[TOKENS][GROUPS * 8];
    __shared__ float tables[TOKENS][GROUPS * 2][16];

    const unsigned row = blockIdx.x * ROWS + threadIdx.x;
    const unsigned first_token = blockIdx.z * TOKENS;
    const unsigned groups = (cols + 7) / 8;
    const unsigned begin = blockIdx.y * groups_per_split;
    const unsigned end = min(groups, begin + groups_per_split);

    float sums[TOKENS] = {};
    for (unsigned tile = begin; tile < end; tile += GROUPS) {
        __syncthreads();
        for (unsigned index = threadIdx.x; index < TOKENS * GROUPS * 8; index += ROWS) {
            const unsigned token = first_token + index / (GROUPS * 8);
            const unsigned column = tile * 8 + index % (GROUPS * 8);
            float value = 0.0f;
            if (token < tokens && column < cols) {
                for (unsigned split = 0; split < splits_in; ++split) {
                    value += x[(size_t(split) * tokens + token) * cols + column];
                }
                if (scale != nullptr) {
                    value *= scale[column];
                }
            }
            values[index / (GROUPS * 8)][index % (GROUPS * 8)] = value;
        }
        __syncthreads();
        for (unsigned index = threadIdx.x; index < TOKENS * GROUPS * 32; index += ROWS) {
            const unsigned entry = index % 16;
            const unsigned table = index / 16 % (GROUPS * 2);
            const unsigned token = index / (GROUPS * 32);
            const float *four = &values[token][table * 4];
            float sum = entry & 1 ? four[0] : -four[0];
            sum += entry & 2 ? four[1] : -four[1];
            sum += entry & 4 ? four[2] : -four[2];
            sum += entry & 8 ? four[3] : -four[3];
            tables[token][table][entry] = sum;
        }
        __syncthreads();
        if (row < rows) {
            const unsigned count = min(GROUPS, end - tile);
            const uint8_t *byte = bytes + size_t(tile) * rows + row;
#pragma unroll 4
            for (unsigned group = 0; group < count; ++group, byte += rows) {
                const unsigned selected = *byte;
#pragma unroll
                for (unsigned token = 0; token < TOKENS; ++token) {
                    sums[token] += tables[token][2 * group][selected & 15] +
                                   tables[token][2 * group + 1][selected >> 4];
                }
            }
        }
    }
    if (row < rows) {
        for (unsigned token = 0; token < TOKENS && first_token + token < tokens; ++token) {
            const size_t line = size_t(blockIdx.y) * tokens + first_token + token;
            out[line * rows + row] = sums[token];
        }
    }
}

#define SIGN_PRODUCT(TOKENS)                                                                       \
    extern "C" __global__ void sign_product_##TOKENS(                                              \
        const uint8_t *bytes, unsigned rows, unsigned cols, const float *x, unsigned splits_in,    \
        const float *scale, unsigned tokens, unsigned groups_per_split, float *out) {              \
        product<TOKENS>(bytes, rows, cols, x, splits_in, scale, tokens, groups_per_split, out);    \
    }

SIGN_PRODUCT(1)
SIGN_PRODUCT(2)
SIGN_PRODUCT(4)
SIGN_PRODUCT(8)

// y[token][row] (+)= scale[row] * sum over splits of partial[split][token][row].
// Threads: x over rows, blocks y over tokens.
extern "C" __global__ void add_splits(const float *partial, unsigned splits, const float *scale,
                                      unsigned tokens, unsigned rows, unsigned accumulate,
                                      float *y) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    const size_t index = size_t(blockIdx.y) * rows + row;
    float sum = 0.0f;
    for (unsigned split = 0; split < splits; ++split) {
        sum += partial[size_t(split) * tokens * rows + index];
    }
    sum *= scale[row];
    y[index] = accumulate ? y[index] + sum : sum;
}

// diag(row_scale) * signs * diag(column_scale) as f32, [rows, cols] row-major; either scale may be
// null. Threads: x over rows, blocks y over column groups.
extern "C" __global__ void unpack_signs(const uint8_t *bytes, unsigned rows, unsigned cols,
                                        const float *row_scale, const float *column_scale,
                                        float *out) {
    const unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) {
        return;
    }
    const unsigned group = blockIdx.y;
    const unsigned selected = bytes[size_t(group) * rows + row];
    const float magnitude = row_scale != nullptr ? row_scale[row] : 1.0f;
    for (unsigned j = 0; j < 8 && 8 * group + j < cols; ++j) {
        const unsigned column = 8 * group + j;
        const float value = column_scale != nullptr ? magnitude * column_scale[column] : magnitude;
        out[size_t(row) * cols + column] = selected >> j & 1 ? value : -value;
    }
}
