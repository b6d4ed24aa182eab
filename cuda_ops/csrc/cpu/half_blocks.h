// Conversion of blocks of float16 to and from float32. Processors with F16C (x86, since 2012) convert
// eight numbers in one instruction, and those with NEON (all of aarch64) four; no compiler generates
// these from the integer code of storage.h.
#pragma once

#include <cstdint>

#include "storage.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NEUSCALE_F16C 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#define NEUSCALE_NEON 1
#include <arm_neon.h>
#endif

namespace neuscale {

constexpr int64_t kHalfBlock = 512;  // numbers; three blocks of float32 leave room in an L1 cache

#if defined(NEUSCALE_F16C)
inline bool has_f16c() {
  // Not __builtin_cpu_supports("f16c"), a name that clang does not know.
  static const bool has = [] {
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }();
  return has;
}

// Both convert as many whole groups of eight as `count` has, and return how many numbers those are.
__attribute__((target("avx,f16c"))) inline int64_t widen_f16c(const Float16* from, float* to,
                                                              int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  return i;
}

__attribute__((target("avx,f16c"))) inline int64_t narrow_f16c(const float* from, Float16* to,
                                                               int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}
#elif defined(NEUSCALE_NEON)
// Both convert as many whole groups of four as `count` has, and return how many numbers those are.
inline int64_t widen_neon(const Float16* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from[i].bits))));
  return i;
}

inline int64_t narrow_neon(const float* from, Float16* to, int64_t count) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    vst1_u16(&to[i].bits, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from + i))));
  return i;
}
#endif

inline void widen(const Float16* from, float* to, int64_t count) {
  int64_t i = 0;
#if defined(NEUSCALE_F16C)
  if (has_f16c()) i = widen_f16c(from, to, count);
#elif defined(NEUSCALE_NEON)
  i = widen_neon(from, to, count);
#endif
  for (; i < count; ++i) to[i] = load(from[i]);
}

inline void narrow(const float* from, Float16* to, int64_t count) {
  int64_t i = 0;
#if defined(NEUSCALE_F16C)
  if (has_f16c()) i = narrow_f16c(from, to, count);
#elif defined(NEUSCALE_NEON)
  i = narrow_neon(from, to, count);
#endif
  for (; i < count; ++i) store(to + i, from[i]);
}

}  // namespace neuscale
