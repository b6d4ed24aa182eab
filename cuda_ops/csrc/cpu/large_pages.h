// Large (huge) pages for large results, whose memory the system has not mapped yet. The first write to
// each page is a page fault of about a microsecond, longer than the arithmetic on its thousand numbers;
// with pages of two megabytes there are 512 times fewer page faults.
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

// When free memory is fragmented, for example after reading many files, the kernel moves other pages to
// make a large one. This takes milliseconds, longer than small pages cost. So the first large page of a
// result is timed, and after a slow one the next result uses small pages; this pause doubles each time
// that the first page is slow again.
class LargePages {
 public:
  static constexpr double kSlow = 1e-3;     // seconds; clearing two megabytes takes a few tenths of it
  static constexpr int kLongestPause = 64;  // results

  // True if the next result should try large pages; counts down the pause.
  bool wanted() {
    return left_.load(std::memory_order_relaxed) <= 0 || left_.fetch_sub(1, std::memory_order_relaxed) <= 0;
  }

  // True if the whole result should use large pages, given the seconds of its first one; sets the pause.
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

// Request large pages for a result of `bytes` bytes that are not written yet. Memory that is already
// mapped does not change, and a kernel with large pages disabled uses small pages.
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
