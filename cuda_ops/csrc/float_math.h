// Exponentials and other small functions of one float, without branches and without a libm call,
// so that compilers can vectorise the loops around them. Coefficients come from
// tools/fit_gelu_math.py.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define NEUSCALE_INLINE __host__ __device__ __forceinline__
#else
#define NEUSCALE_INLINE inline __attribute__((always_inline))
#endif

namespace neuscale {

// Type that the result is rounded to; all arithmetic is in float32.
enum class Precision { kFloat32, kFloat16, kBFloat16 };

// Precision of a storage type; specialise it where load() and store() of another type are declared.
template <typename T>
constexpr Precision kPrecision = Precision::kFloat32;

// From here on the exponent of exp(-x) is -127, for which times_power() gives 0: no other cut is needed.
constexpr float kLargestExponent = 88.0f;

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

NEUSCALE_INLINE float magnitude(float x) { return as_float(as_bits(x) & 0x7FFFFFFF); }

NEUSCALE_INLINE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}

// min(x, limit) for x >= 0; `limit` if x is NaN. Later steps stay finite, and the caller multiplies
// by x itself, so that NaN reaches the result. Non-negative floats have the order of their bits, and
// a minimum of integers is one instruction.
NEUSCALE_INLINE float limited(float x, float limit) {
  const int32_t bits = as_bits(x), most = as_bits(limit);
  return as_float(bits < most ? bits : most);
}

// c + c1 * x + c2 * x² + …, by Horner's rule.
NEUSCALE_INLINE float polynomial(float, float c) { return c; }
template <typename... Floats>
NEUSCALE_INLINE float polynomial(float x, float c, Floats... higher) {
  return polynomial(x, higher...) * x + c;
}

// 2^n * mantissa, where n is a whole number in [-127, 127] and `shifted` is n + kShift.
constexpr float kShift = 12582912.0f + 127.0f;  // adding to 1.5 * 2^23 rounds to an integer, in the low bits
NEUSCALE_INLINE float times_power(float mantissa, float shifted) {
  return mantissa * as_float(static_cast<int32_t>(static_cast<uint32_t>(as_bits(shifted)) << 23));
}

// exp(-(x + rest)) for x in [0, kLargestExponent] and |rest| much below x; 0 at the limit.
NEUSCALE_INLINE float exp_minus(float x, float rest) {
#if defined(__CUDA_ARCH__)
  // One MUFU.EX2 instruction, which flushes subnormal numbers to 0.
  const float head = x * 1.44269504f;
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(-head));
  // Rounding error of the argument; without a correction it would cost up to 87 ulp.
  const float tail = fmaf(x, 1.44269504f, -head) + x * 1.92596299e-8f;
  return fmaf(result, -(rest + tail * 0.693147181f), result);
#else
  const float shifted = (x + rest) * -1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (-x - n * 0.693359375f) - n * -2.12194440e-4f - rest;
  const float q =
      polynomial(r, 0.4999999955f, 0.1666657636f, 0.04166685537f, 0.008363300034f, 0.001390134984f);
  return times_power(q * r * r + r + 1.0f, shifted);
#endif
}

// 2^(x * y + whole) for an exponent in [-127, 0], to 18 bits, or 13 bits for bfloat16; 0 at -127.
template <Precision P>
NEUSCALE_INLINE float power_of_two(float x, float y, float whole) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(fmaf(x, y, whole)));
  return result;
#else
  const float shifted = x * y + (kShift + whole);
  const float r = x * y + ((kShift + whole) - shifted);
  const float q = P == Precision::kBFloat16
                      ? polynomial(r, 0.6932845515f, 0.242222842f, 0.05500600314f)
                      : polynomial(r, 0.6931239269f, 0.2402411638f, 0.05590879279f, 0.009582623862f);
  return times_power(q * r + 1.0f, shifted);
#endif
}

}  // namespace neuscale
