// Loops that the compiler vectorises. target_clones compiles a copy for each instruction set, and the
// dynamic loader picks the best one that the machine supports. Templates cannot be cloned, hence the
// macros.
#include "gelu_rows.h"

#include <algorithm>

#include "half_blocks.h"

#if defined(NEUSCALE_TARGET_CLONES)
#define NEUSCALE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NEUSCALE_CLONES
#endif

namespace neuscale {
namespace {

#define NEUSCALE_FORWARD(NAME, T, FORM, PRECISION)                                             \
  NEUSCALE_CLONES void NAME(const T* __restrict x, const float* __restrict bias,               \
                            T* __restrict y, int64_t rows, int64_t width, int64_t stride) {    \
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride)                               \
      for (int64_t c = 0; c < width; ++c)                                                      \
        store(y + c,                                                                           \
              gelu<Approximate::FORM, Precision::PRECISION>(load(x[c]) + bias[c]));            \
  }

#define NEUSCALE_BACKWARD(NAME, T, FORM, PRECISION)                                            \
  NEUSCALE_CLONES void NAME(const T* __restrict grad, const T* __restrict x,                   \
                            const float* __restrict bias, T* __restrict dx,                    \
                            float* __restrict sum, int64_t rows, int64_t width,                \
                            int64_t stride) {                                                  \
    for (int64_t r = 0; r < rows; ++r, grad += stride, x += stride, dx += stride)              \
      for (int64_t c = 0; c < width; ++c) {                                                    \
        const float u = load(x[c]) + bias[c];                                                  \
        const float d =                                                                        \
            load(grad[c]) * gelu_derivative<Approximate::FORM, Precision::PRECISION>(u);       \
        sum[c] += d;                                                                           \
        store(dx + c, d);                                                                      \
      }                                                                                        \
  }

#define NEUSCALE_ROWS(NAME, T, PRECISION)                  \
  NEUSCALE_FORWARD(forward_erf_##NAME, T, kNone, PRECISION)   \
  NEUSCALE_FORWARD(forward_tanh_##NAME, T, kTanh, PRECISION)  \
  NEUSCALE_BACKWARD(backward_erf_##NAME, T, kNone, PRECISION) \
  NEUSCALE_BACKWARD(backward_tanh_##NAME, T, kTanh, PRECISION)

NEUSCALE_ROWS(float, float, kFloat32)
NEUSCALE_ROWS(bfloat16, BFloat16, kBFloat16)
NEUSCALE_ROWS(widened, float, kFloat16)

// float16, converted to float32 in blocks.
template <ForwardRows<float> kRows>
void forward_half(const Float16* x, const float* bias, Float16* y, int64_t rows, int64_t width,
                  int64_t stride) {
  float in[kHalfBlock], out[kHalfBlock];
  for (int64_t r = 0; r < rows; ++r, x += stride, y += stride)
    for (int64_t c = 0; c < width; c += kHalfBlock) {
      const int64_t count = std::min(kHalfBlock, width - c);
      widen(x + c, in, count);
      kRows(in, bias + c, out, 1, count, count);
      narrow(out, y + c, count);
    }
}

template <BackwardRows<float> kRows>
void backward_half(const Float16* grad, const Float16* x, const float* bias, Float16* dx,
                   float* sum, int64_t rows, int64_t width, int64_t stride) {
  float in[kHalfBlock], grad_in[kHalfBlock], out[kHalfBlock];
  for (int64_t r = 0; r < rows; ++r, grad += stride, x += stride, dx += stride)
    for (int64_t c = 0; c < width; c += kHalfBlock) {
      const int64_t count = std::min(kHalfBlock, width - c);
      widen(x + c, in, count);
      widen(grad + c, grad_in, count);
      kRows(grad_in, in, bias + c, out, sum + c, 1, count, count);
      narrow(out, dx + c, count);
    }
}

constexpr ForwardRows<Float16> forward_erf_float16 = forward_half<forward_erf_widened>;
constexpr ForwardRows<Float16> forward_tanh_float16 = forward_half<forward_tanh_widened>;
constexpr BackwardRows<Float16> backward_erf_float16 = backward_half<backward_erf_widened>;
constexpr BackwardRows<Float16> backward_tanh_float16 = backward_half<backward_tanh_widened>;

}  // namespace

#define NEUSCALE_CHOICE(NAME, T)                                                     \
  template <>                                                                        \
  ForwardRows<T> forward_rows<T>(Approximate approximate) {                          \
    return approximate == Approximate::kTanh ? forward_tanh_##NAME : forward_erf_##NAME;   \
  }                                                                                  \
  template <>                                                                        \
  BackwardRows<T> backward_rows<T>(Approximate approximate) {                        \
    return approximate == Approximate::kTanh ? backward_tanh_##NAME : backward_erf_##NAME; \
  }

NEUSCALE_CHOICE(float, float)
NEUSCALE_CHOICE(bfloat16, BFloat16)
NEUSCALE_CHOICE(float16, Float16)

}  // namespace neuscale
