// Large results land on pages that the system has not handed out yet. Each first write to one
// is a fault of about a microsecond, more than the arithmetic of its thousand numbers; asking for
// a slice at once halves that.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace neuscale {

// Below this, allocators keep what is freed, with its pages. Above, they may give it back each
// time; asking for pages that are there costs little.
constexpr size_t kFreshBytes = size_t{2} << 20;

inline bool worth_populating(size_t bytes) { return bytes >= kFreshBytes; }

// The whole pages within [begin, begin + bytes), which the caller owns. What is there stays; a
// kernel older than 5.14 says no, and the pages come by faults.
inline void populate([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, not in older headers
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(kPage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, kPopulateWrite);
#endif
}

}  // namespace neuscale
