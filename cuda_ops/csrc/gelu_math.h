// GELU and its derivative for one float, without branches: what the CPU's rows and the CUDA
// kernels both compute.
//
// No libm call stands here, so that compilers can vectorise the loops around it. Coefficients
// come from tools/fit_gelu_math.py, which names their source.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define NEUSCALE_INLINE __host__ __device__ __forceinline__
#else
#define NEUSCALE_INLINE inline __attribute__((always_inline))
#endif

namespace neuscale {

enum class Approximate : int64_t { kNone = 0, kTanh = 1 };

// Fine serves float32; coarse serves results that are rounded to 11 bits or fewer.
enum class Precision { kFine, kCoarse };

constexpr float kLargestExponent = 87.0f;  // exp(-87) is near the smallest normal float32
constexpr float kLargestTail = 13.25f;     // its square / 2 is a little above kLargestExponent

NEUSCALE_INLINE float as_float(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

NEUSCALE_INLINE int32_t as_bits(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// |x| <= limit, and limit where x is NaN: what follows stays finite, and the caller multiplies by
// x itself, so that NaN reaches the result.
NEUSCALE_INLINE float limited(float magnitude, float limit) {
  return magnitude < limit ? magnitude : limit;
}

// exp(-(x + rest)) for x in [0, kLargestExponent] and |rest| much below x; 0 from the limit on.
template <Precision P>
NEUSCALE_INLINE float exp_minus(float x, float rest) {
#if defined(__CUDA_ARCH__)
  // One MUFU.EX2: x stays above the range in which it would need scaling.
  const float head = x * 1.44269504f;
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(-head));
  result = x < kLargestExponent ? result : 0.0f;
  if (P == Precision::kCoarse) return result;
  // What rounding took from the argument, which would cost up to 87 units in the last place.
  const float tail = fmaf(x, 1.44269504f, -head) + x * 1.92596299e-8f;
  return fmaf(result, -(rest + tail * 0.693147181f), result);
#else
  // 2^n * exp(r): adding 1.5 * 2^23 rounds to the nearest whole number, in the low bits.
  const float shifted = (x + rest) * -1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (-x - n * 0.693359375f) - n * -2.12194440e-4f - rest;
  float q;
  if (P == Precision::kFine) {
    q = 0.001390134984f;
    q = q * r + 0.008363300034f;
    q = q * r + 0.04166685537f;
    q = q * r + 0.1666657636f;
    q = q * r + 0.4999999955f;
  } else {
    q = 0.04170851834f;
    q = q * r + 0.1674219019f;
    q = q * r + 0.5000050606f;
  }
  const float mantissa = q * r * r + r + 1.0f;
  const float power = as_float(static_cast<int32_t>((static_cast<uint32_t>(as_bits(shifted)) + 127u) << 23));
  return x < kLargestExponent ? mantissa * power : 0.0f;
#endif
}

// exp(-a² / 2) for a >= 0.
template <Precision P>
NEUSCALE_INLINE float exp_minus_half_square(float a) {
#if defined(__CUDA_ARCH__)
  const float square = a * a;
  return exp_minus<P>(0.5f * square, P == Precision::kFine ? 0.5f * fmaf(a, a, -square) : 0.0f);
#else
  if (P == Precision::kCoarse) return exp_minus<P>(0.5f * a * a, 0.0f);
  // The square of the upper 12 bits is exact; the rest is added after the reduction.
  const float upper = as_float(as_bits(a) & ~0xFFF);
  return exp_minus<P>(0.5f * (upper * upper), 0.5f * ((a - upper) * (a + upper)));
#endif
}

NEUSCALE_INLINE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}

NEUSCALE_INLINE float magnitude(float x) { return as_float(as_bits(x) & 0x7FFFFFFF); }

// The normal distribution at u: its cdf, and exp(-u² / 2).
template <Precision P>
NEUSCALE_INLINE float normal_cdf(float u, float& exponential) {
  const float a = limited(magnitude(u), kLargestTail);
  exponential = exp_minus_half_square<P>(a);
  float factor;
  if (P == Precision::kFine) {
    const float w = reciprocal(a + 3.75f);
    const float t = w * 9.439655172f - 1.517241379f;
    factor = 7.041825032e-05f;
    factor = factor * t + 4.383637069e-05f;
    factor = factor * t + -0.001101250625f;
    factor = factor * t + -0.00208215255f;
    factor = factor * t + 0.01335739689f;
    factor = factor * t + 0.09082283159f;
    factor = factor * t + 0.2876174458f;
    factor = factor * t + 0.5988344465f;
    factor = factor * t + 0.8874370551f;
    factor *= w;
  } else {
    const float w = reciprocal(a + 3.25f);
    const float t = w * 7.956896552f - 1.448275862f;
    factor = -0.002778345352f;
    factor = factor * t + -0.00295662176f;
    factor = factor * t + 0.04277723223f;
    factor = factor * t + 0.212575741f;
    factor = factor * t + 0.5294650396f;
    factor = factor * t + 0.8459169712f;
    factor *= w;
  }
  const float tail = factor * exponential;
  return u < 0.0f ? tail : 1.0f - tail;
}

// The logistic function of sqrt(8 / pi) (u + 0.044715 u³), which is (1 + tanh(…)) / 2 of the
// tanh form; and its product with one minus itself.
template <Precision P>
NEUSCALE_INLINE float tanh_form_cdf(float u, float& product) {
  const float v = magnitude(u) * (0.0713548163f * (u * u) + 1.59576912f);
  const float e = exp_minus<P>(limited(v, kLargestExponent), 0.0f);
  const float upper = reciprocal(1.0f + e);
  const float lower = e * upper;
  product = lower * upper;
  return u < 0.0f ? lower : upper;
}

// u * cdf(u); NaN at -inf, as the formula and torch have it.
template <Approximate A, Precision P>
NEUSCALE_INLINE float gelu(float u) {
  float unused;
  if (A == Approximate::kTanh) return u * tanh_form_cdf<P>(u, unused);
  return u * normal_cdf<P>(u, unused);
}

// The derivative. Where the density vanishes the product is 0 for every finite u, as the factor
// that could overflow is limited.
template <Approximate A, Precision P>
NEUSCALE_INLINE float gelu_derivative(float u) {
  float density;
  if (A == Approximate::kTanh) {
    const float cdf = tanh_form_cdf<P>(u, density);
    const float slope = 0.214064449f * limited(u * u, 1e6f) + 1.59576912f;
    return cdf + u * (density * slope);
  }
  const float cdf = normal_cdf<P>(u, density);
  return cdf + (u * 0.39894228f) * density;
}

}  // namespace neuscale
