// GELU and its derivative for one float, without branches; used by the CPU loops and the CUDA
// kernels. Coefficients come from tools/fit_gelu_math.py, which names their source.
#pragma once

#include "float_math.h"

namespace neuscale {

enum class Approximate : int64_t { kNone = 0, kTanh = 1 };

// exp(-a² / 2) for a >= 0.
NEUSCALE_INLINE float exp_minus_half_square(float a) {
#if defined(__CUDA_ARCH__)
  const float square = a * a;
  return exp_minus(0.5f * square, 0.5f * fmaf(a, a, -square));
#else
  // The square of the upper 12 bits is exact; the remainder is added after the range reduction.
  const float upper = as_float(as_bits(a) & ~0xFFF);
  return exp_minus(0.5f * (upper * upper), 0.5f * ((a - upper) * (a + upper)));
#endif
}

// Cut-offs beyond which the tails vanish in the result: they are below the smallest normal number of
// float32 and bfloat16; for float16 they are so from 8 on, even times its largest gradient.
template <Precision P>
constexpr float kLargestTail = P == Precision::kFloat32 ? 13.2665f : P == Precision::kFloat16 ? 8.0f : 13.0f;
template <Precision P>
constexpr float kLargestDerivative = P == Precision::kFloat16 ? 8.0f : 13.2665f;
constexpr float kLargestTanh = 10.03f;

// Upper tail of the normal distribution for a in [0, kLargestTail], 0 at the limit; `exponential`
// is set to exp(-a² / 2).
NEUSCALE_INLINE float normal_tail(float a, float& exponential) {
  exponential = exp_minus_half_square(a);
  const float w = reciprocal(a + 3.75f);
  const float t = w * 9.439655172f - 1.517241379f;
  const float factor =
      polynomial(t, 0.8874370551f, 0.5988344465f, 0.2876174458f, 0.09082283159f, 0.01335739689f,
                 -0.00208215255f, -0.001101250625f, 4.38363707e-05f, 7.041825032e-05f);
  return factor * w * exponential;
}

// The same tail for float16 and bfloat16, as a power of two, without a division.
template <Precision P>
NEUSCALE_INLINE float normal_tail(float a) {
  const float s =
      P == Precision::kFloat16
          ? polynomial(a, -1.151265791f, -0.4583077371f, -0.05424000065f, 0.008718268592f,
                       -0.001010913771f, 7.800394888e-05f, -3.538077436e-06f, 7.070266803e-08f)
          : polynomial(a, -1.149852167f, -0.4617641088f, -0.05136354428f, 0.007580993712f,
                       -0.0007702180292f, 4.999488969e-05f, -1.848865862e-06f, 2.947464741e-08f);
  const float tail = power_of_two<P>(s, a, -1.0f);
  // At float16's limit the power of two itself is not yet 0.
  return P == Precision::kFloat16 && !(a < kLargestTail<P>) ? 0.0f : tail;
}

// The tail of the derivative, tail(a) - a * density(a), for a in [0, kLargestDerivative].
template <Precision P>
NEUSCALE_INLINE float derivative_tail(float a) {
  const float factor =
      P == Precision::kFloat16
          ? polynomial(a, 0.499983223f, -0.7973156039f, 0.2463510856f, -0.1233395765f, 0.04882389416f,
                       -0.01455262692f, 0.003109118465f, -0.0004537754223f, 4.253435489e-05f,
                       -2.294243349e-06f, 5.393921163e-08f)
          : polynomial(a, 0.4998575542f, -0.79463581f, 0.2352144552f, -0.1050552848f, 0.03370821934f,
                       -0.007476360852f, 0.001116333862f, -0.0001091453096f, 6.663390294e-06f,
                       -2.297034871e-07f, 3.406702257e-09f);
  return factor * power_of_two<P>(a * -0.72134752f, a, 0.0f);
}

// cdf(u) of the tanh form, (1 + tanh(…)) / 2, as the logistic function of
// sqrt(8 / pi) (u + 0.044715 u³); `product` is set to cdf * (1 - cdf).
template <Precision P>
NEUSCALE_INLINE float tanh_form_cdf(float u, float& product) {
  const float a = limited(magnitude(u), kLargestTanh);
  const float e = P == Precision::kFloat32 ? exp_minus(a * (0.0713548163f * (a * a) + 1.59576912f), 0.0f)
                                           : power_of_two<P>(-0.102943240f * (a * a) - 2.30220819f, a, 0.0f);
  const float upper = reciprocal(1.0f + e);
  const float lower = e * upper;
  product = lower * upper;
  return u < 0.0f ? lower : upper;
}

// GELU, u * cdf(u); NaN at -inf, like the formula and torch.
template <Approximate A, Precision P>
NEUSCALE_INLINE float gelu(float u) {
  float unused;
  if (A == Approximate::kTanh) return u * tanh_form_cdf<P>(u, unused);
  const float a = limited(magnitude(u), kLargestTail<P>);
  const float tail = P == Precision::kFloat32 ? normal_tail(a, unused) : normal_tail<P>(a);
  return u * (u < 0.0f ? tail : 1.0f - tail);
}

// Derivative of GELU. Where the density vanishes, its product with u is 0 for every finite u,
// because the factor that could overflow is limited; NaN at both infinities.
template <Approximate A, Precision P>
NEUSCALE_INLINE float gelu_derivative(float u) {
  float density;
  if (A == Approximate::kTanh) {
    const float cdf = tanh_form_cdf<P>(u, density);
    const float slope = 0.214064449f * limited(u * u, 1e6f) + 1.59576912f;
    return cdf + u * (density * slope);
  }
  const float a = limited(magnitude(u), kLargestDerivative<P>);
  if (P == Precision::kFloat32) {
    const float tail = normal_tail(a, density);
    return (u < 0.0f ? tail : 1.0f - tail) + (u * 0.39894228f) * density;
  }
  const float tail = derivative_tail<P>(a);
  return (u < 0.0f ? tail : 1.0f - tail) + u * 0.0f;
}

}  // namespace neuscale
