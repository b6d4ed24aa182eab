// The loops that the compiler vectorises. target_clones makes a copy for each instruction set
// and the loader takes the best one that the machine has; templates cannot be cloned, hence the
// macros.
#include "gelu_rows.h"

#if defined(NEUSCALE_TARGET_CLONES)
#define NEUSCALE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NEUSCALE_CLONES
#endif

namespace neuscale {

#define NEUSCALE_FORWARD(NAME, T, FORM)                                                        \
  NEUSCALE_CLONES void NAME(const T* __restrict x, const float* __restrict bias,               \
                            T* __restrict y, int64_t rows, int64_t width, int64_t stride) {    \
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride)                               \
      for (int64_t c = 0; c < width; ++c)                                                      \
        store(y + c, gelu<Approximate::FORM, kPrecisionOf<T>>(load(x[c]) + bias[c]));          \
  }

#define NEUSCALE_BACKWARD(NAME, T, FORM)                                                       \
  NEUSCALE_CLONES void NAME(const T* __restrict grad, const T* __restrict x,                   \
                            const float* __restrict bias, T* __restrict dx,                    \
                            float* __restrict sum, int64_t rows, int64_t width,                \
                            int64_t stride) {                                                  \
    for (int64_t r = 0; r < rows; ++r, grad += stride, x += stride, dx += stride)              \
      for (int64_t c = 0; c < width; ++c) {                                                    \
        const float u = load(x[c]) + bias[c];                                                  \
        const float d = load(grad[c]) * gelu_derivative<Approximate::FORM, kPrecisionOf<T>>(u); \
        sum[c] += d;                                                                           \
        store(dx + c, d);                                                                      \
      }                                                                                        \
  }

#define NEUSCALE_ROWS(T)                                                                       \
  NEUSCALE_FORWARD(forward_erf_##T, T, kNone)                                                  \
  NEUSCALE_FORWARD(forward_tanh_##T, T, kTanh)                                                 \
  NEUSCALE_BACKWARD(backward_erf_##T, T, kNone)                                                \
  NEUSCALE_BACKWARD(backward_tanh_##T, T, kTanh)                                               \
  template <>                                                                                  \
  ForwardRows<T> forward_rows<T>(Approximate approximate) {                                    \
    return approximate == Approximate::kTanh ? forward_tanh_##T : forward_erf_##T;             \
  }                                                                                            \
  template <>                                                                                  \
  BackwardRows<T> backward_rows<T>(Approximate approximate) {                                  \
    return approximate == Approximate::kTanh ? backward_tanh_##T : backward_erf_##T;           \
  }

NEUSCALE_ROWS(float)
NEUSCALE_ROWS(Float16)
NEUSCALE_ROWS(BFloat16)

}  // namespace neuscale
