// Large results land on memory that the system has not handed out yet. Each first write to one of
// its pages is a fault of about a microsecond, more than the arithmetic of its thousand numbers;
// with pages of two megabytes there are 512 times fewer of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace neuscale {

constexpr size_t kLargePage = size_t{2} << 20;

// Where free memory is in small pieces, as after much reading of files, the kernel moves others'
// pages about to make a large one, for milliseconds: more than small pages cost. So the first one
// of a result is timed, and after a slow one the next result goes without; twice as many after each
// that is slow again.
class LargePages {
 public:
  static constexpr double kSlow = 1e-3;     // seconds; to clear two megabytes takes a few tenths of that
  static constexpr int kLongestPause = 64;  // results

  // Whether to try at all.
  bool wanted() {
    return left_.load(std::memory_order_relaxed) <= 0 || left_.fetch_sub(1, std::memory_order_relaxed) <= 0;
  }

  // Whether to go on, after a first page that took so long.
  bool worthwhile(double seconds) {
    const bool quick = seconds < kSlow;
    const int pause = pause_.load(std::memory_order_relaxed);
    if (!quick) left_.store(pause, std::memory_order_relaxed);
    pause_.store(quick ? 1 : std::min(2 * pause, kLongestPause), std::memory_order_relaxed);
    return quick;
  }

 private:
  std::atomic<int> left_{0}, pause_{1};
};

// Asks for large pages under a result of that many bytes, none of which is written yet. Memory that
// is there already stays as it is; a kernel that is set to refuse goes on with small pages.
inline void ask_for_large_pages([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  static LargePages pages;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kLargePage - 1) & ~(kLargePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(kLargePage - 1);
  if (first >= end || !pages.wanted()) return;
  madvise(reinterpret_cast<void*>(first), kLargePage, MADV_HUGEPAGE);
  const auto before = std::chrono::steady_clock::now();
  *reinterpret_cast<volatile char*>(first) = 0;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - before;
  if (pages.worthwhile(took.count()) && first + kLargePage < end)
    madvise(reinterpret_cast<void*>(first + kLargePage), end - first - kLargePage, MADV_HUGEPAGE);
#endif
}

}  // namespace neuscale
