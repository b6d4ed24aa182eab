// float16 and bfloat16 as bits, converted to and from float32 by integer operations that vectorise.
#pragma once

#include <cstdint>

#include "../gelu_math.h"

namespace neuscale {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <>
inline constexpr Precision kPrecision<Float16> = Precision::kFloat16;
template <>
inline constexpr Precision kPrecision<BFloat16> = Precision::kBFloat16;

// Select with masks: compilers turn some conditional expressions on integers into jumps, and a loop
// with a jump does not vectorise.
NEUSCALE_INLINE uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

NEUSCALE_INLINE float load(float value) { return value; }

NEUSCALE_INLINE float load(BFloat16 value) {
  return as_float(static_cast<int32_t>(static_cast<uint32_t>(value.bits) << 16));
}

// A multiplication changes the exponent's bias; it is exact, also for subnormals (which become zero
// after torch.set_flush_denormal).
NEUSCALE_INLINE float load(Float16 value) {
  const uint32_t rest = value.bits & 0x7FFFu;
  const uint32_t finite = static_cast<uint32_t>(as_bits(as_float(static_cast<int32_t>(rest << 13)) * 0x1p112f));
  const uint32_t bits = finite | choose(rest >= 0x7C00u, 0x7F800000u, 0u);
  return as_float(static_cast<int32_t>(bits | (static_cast<uint32_t>(value.bits & 0x8000u) << 16)));
}

NEUSCALE_INLINE void store(float* to, float value) { *to = value; }

// Round to nearest, ties to even. NaN stays NaN unless the carry overflows its bits, as in 0x7FFFFFFF.
// Arithmetic and bfloat16 never give such a NaN; code that reads other float32 replaces it (bias_row).
NEUSCALE_INLINE void store(BFloat16* to, float value) {
  const uint32_t up = static_cast<uint32_t>(as_bits(value)) + 0x8000u;
  to->bits = static_cast<uint16_t>((up >> 16) & ((up & 0xFFFFu) == 0u ? ~1u : ~0u));
}

NEUSCALE_INLINE void store(Float16* to, float value) {
  const uint32_t bits = static_cast<uint32_t>(as_bits(value));
  const uint32_t rest = bits & 0x7FFFFFFFu;
  // From 2^-14 on: round away 13 bits and change the exponent's bias.
  // From 2^16 on the result is the bits of infinity.
  const uint32_t limited = rest < 0x47800000u ? rest : 0x47800000u;
  const uint32_t normal = (limited - (112u << 23) + 0xFFFu + ((limited >> 13) & 1u)) >> 13;
  // Below 2^-14: the ulp of 0.5f is float16's smallest step, so the float addition does the rounding.
  const uint32_t small =
      static_cast<uint32_t>(as_bits(as_float(static_cast<int32_t>(rest)) + 0.5f)) - 0x3F000000u;
  uint32_t result = choose(rest < 0x38800000u, small, normal);
  result = choose(rest > 0x7F800000u, 0x7E00u, result);
  to->bits = static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u));
}

}  // namespace neuscale
