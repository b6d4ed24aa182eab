// Conversion of blocks of float16 to and from float32. Processors with F16C (x86, since 2012) convert
// eight numbers in one instruction, which no compiler generates from the integer code of storage.h.
#pragma once

#include <cstdint>

#include "storage.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define NEUSCALE_F16C 1
#include <immintrin.h>
#endif

namespace neuscale {

constexpr int64_t kHalfBlock = 512;  // numbers; three blocks of float32 leave room in an L1 cache

#if defined(NEUSCALE_F16C)
inline bool has_f16c() {
  static const bool has = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
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
#endif

inline void widen(const Float16* from, float* to, int64_t count) {
  int64_t i = 0;
#if defined(NEUSCALE_F16C)
  if (has_f16c()) i = widen_f16c(from, to, count);
#endif
  for (; i < count; ++i) to[i] = load(from[i]);
}

inline void narrow(const float* from, Float16* to, int64_t count) {
  int64_t i = 0;
#if defined(NEUSCALE_F16C)
  if (has_f16c()) i = narrow_f16c(from, to, count);
#endif
  for (; i < count; ++i) store(to + i, from[i]);
}

}  // namespace neuscale
