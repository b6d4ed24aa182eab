// Runs CUDA kernels as C++20: each CUDA thread of a block is an OS thread, and blocks run one after
// another. The sanitizers then find what a GPU would not report: a read past the end, a misaligned
// access, a race on shared memory, a barrier that not every thread reaches.
#pragma once

#include <barrier>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

// Indices and sizes that a CUDA thread can read, and the barrier of its block.
struct Place {
  dim3 thread, block, block_size, grid_size;
  std::barrier<>* barrier = nullptr;
};
inline thread_local Place place;

// Threads that leave a kernel early drop out of the barrier, as on a GPU. A second barrier separates
// the blocks, because shared memory (static here) belongs to one block at a time.
inline void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  const unsigned count = block.x * block.y;
  std::barrier<> between(count);
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  for (unsigned i = 0; i < grid.x * grid.y; ++i) barriers.push_back(std::make_unique<std::barrier<>>(count));
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      for (unsigned b = 0; b < grid.x * grid.y; ++b) {
        place = {{t % block.x, t / block.x}, {b % grid.x, b / grid.x}, block, grid, barriers[b].get()};
        kernel();
        barriers[b]->arrive_and_drop();
        between.arrive_and_wait();
      }
    });
  for (auto& thread : threads) thread.join();
}

// Memory of exactly `count` elements, aligned to 16 bytes as on a GPU: the sanitizer reports an access
// beyond the last element.
template <typename T>
class Memory {
 public:
  explicit Memory(size_t count) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, count * sizeof(T) + (count == 0)) != 0) std::abort();
    data_ = static_cast<T*>(memory);
  }
  Memory(const Memory&) = delete;
  ~Memory() { std::free(data_); }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_;
  size_t count_;
};

}  // namespace emulation

#define __global__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static
#define threadIdx (emulation::place.thread)
#define blockIdx (emulation::place.block)
#define blockDim (emulation::place.block_size)
#define gridDim (emulation::place.grid_size)
inline void __syncthreads() { emulation::place.barrier->arrive_and_wait(); }
