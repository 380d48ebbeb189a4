// One step of Adam, in place, on values and moments that lie one below the other.

#include <cstdint>

// As in Rule of src/job/littlebit/tuning/adam.rs.
constexpr uint32_t SMOOTH = 1;
constexpr uint32_t RELATIVE = 2;

// state: [3, count], the values and both moments. gradient: [count]; for RELATIVE that of the values,
// which makes that of their logarithms here. rate: divided by the first moment's bias already.
// unbias: what the second moment is multiplied by against its bias. One thread per value.
extern "C" __global__ void adam_step(float *state, const float *gradient, uint64_t count, float rate,
                                     float unbias, float beta1, float beta2, float epsilon,
                                     uint32_t rule) {
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    float *first = state + count;
    float *second = first + count;
    const float value = state[i];
    float g = gradient[i];
    if (rule == SMOOTH) {
        const float t = tanhf(value);
        g *= 1.0f - t * t;
    } else if (rule == RELATIVE) {
        g *= value;
    }
    const float m = beta1 * first[i] + (1.0f - beta1) * g;
    const float v = beta2 * second[i] + (1.0f - beta2) * g * g;
    first[i] = m;
    second[i] = v;
    const float step = rate * m / (sqrtf(v * unbias) + epsilon);
    state[i] = rule == RELATIVE ? value * expf(-step) : value - step;
}
