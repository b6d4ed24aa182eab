// Large results land on memory that the system has not handed out yet. Each first write to one of
// its pages is a fault of about a microsecond, more than the arithmetic of its thousand numbers;
// with pages of two megabytes there are 512 times fewer of them.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace neuscale {

// Asks for large pages under a result of that many bytes. Memory that is there already stays as it
// is; a kernel that has none to give, or is set to refuse, goes on with small ones.
inline void ask_for_large_pages([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr size_t kLarge = size_t{2} << 20;
  constexpr uintptr_t kPage = 4096;
  if (bytes < kLarge) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace neuscale
