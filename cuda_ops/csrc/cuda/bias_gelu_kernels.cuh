// The CUDA kernels of bias_gelu, without torch and without launches, so that tests can also compile
// them as C++ against an emulation of the CUDA names used here.
//
// The including file declares load() and store(), which convert T and B to float and back, and
// kPrecision<T>.
#pragma once

#include <cstdint>

#include "../gelu_math.h"

namespace neuscale {

// N values that are read or written in one access: 16 bytes in every vector kernel.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

template <typename T, int N>
NEUSCALE_INLINE Pack<T, N> read_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <typename T, int N>
NEUSCALE_INLINE void write_pack(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Read N values of the bias; zeros without a bias.
template <typename B, int N>
NEUSCALE_INLINE void read_bias(const B* bias, int column, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = bias ? load(bias[column + i]) : 0.0f;
}

// y[r][c] = gelu(x[r][c] + bias[c]). A thread keeps the bias of its N columns in registers and loops
// over the rows, kRows of them in flight. Blocks are (TX, TY); the grid's x covers the columns, its
// y may have any size. N divides `columns`, and x and y are aligned to a Pack.
template <typename T, typename B, Approximate A, int N, int TX, int TY>
__global__ void __launch_bounds__(TX* TY)
    bias_gelu_forward(const T* __restrict__ x, const B* __restrict__ bias, T* __restrict__ y,
                      int64_t rows, int columns) {
  constexpr int kRows = 2;
  const int column = (blockIdx.x * TX + threadIdx.x) * N;
  if (column >= columns) return;
  float b[N];
  read_bias<B, N>(bias, column, b);
  const int64_t step = static_cast<int64_t>(gridDim.y) * TY;
  for (int64_t r = static_cast<int64_t>(blockIdx.y) * TY + threadIdx.y; r < rows; r += step * kRows) {
    Pack<T, N> pack[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      if (r + k * step < rows) pack[k] = read_pack<T, N>(x + (r + k * step) * columns + column);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (r + k * step >= rows) break;
#pragma unroll
      for (int i = 0; i < N; ++i)
        store(&pack[k].values[i], gelu<A, kPrecision<T>>(load(pack[k].values[i]) + b[i]));
      write_pack<T, N>(y + (r + k * step) * columns + column, pack[k]);
    }
  }
}

// dx = grad * gelu'(x + bias), and sums[blockIdx.y][c] = the block's part of the bias gradient, summed
// from dx before rounding. The order of summation depends only on the grid. Threads beyond the last
// column still take part in the barrier.
template <typename T, typename B, Approximate A, int N, int TX, int TY>
__global__ void __launch_bounds__(TX* TY)
    bias_gelu_backward(const T* __restrict__ grad, const T* __restrict__ x,
                       const B* __restrict__ bias, T* __restrict__ dx, float* __restrict__ sums,
                       int64_t rows, int columns) {
  // Value i of thread x is at i * TX + x, so that a warp accesses 32 different banks.
  __shared__ float shared[TY][TX * N];
  const int column = (blockIdx.x * TX + threadIdx.x) * N;
  float sum[N];
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i] = 0.0f;
  if (column < columns) {
    float b[N];
    read_bias<B, N>(bias, column, b);
    for (int64_t r = static_cast<int64_t>(blockIdx.y) * TY + threadIdx.y; r < rows;
         r += static_cast<int64_t>(gridDim.y) * TY) {
      const int64_t at = r * columns + column;
      const Pack<T, N> upstream = read_pack<T, N>(grad + at);
      Pack<T, N> pack = read_pack<T, N>(x + at);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float u = load(pack.values[i]) + b[i];
        const float d = load(upstream.values[i]) * gelu_derivative<A, kPrecision<T>>(u);
        sum[i] += d;
        store(&pack.values[i], d);
      }
      write_pack<T, N>(dx + at, pack);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) shared[threadIdx.y][i * TX + threadIdx.x] = sum[i];
  __syncthreads();
  if (column >= columns) return;
  for (int i = threadIdx.y; i < N; i += TY) {
    float total = 0.0f;
#pragma unroll
    for (int y = 0; y < TY; ++y) total += shared[y][i * TX + threadIdx.x];
    sums[static_cast<int64_t>(blockIdx.y) * columns + column + i] = total;
  }
}

// dbias[c] = the sum of `parts` rows of sums, in a fixed order. Blocks of (TX, TY).
template <typename B, int TX, int TY>
__global__ void __launch_bounds__(TX* TY)
    sum_parts(const float* __restrict__ sums, B* __restrict__ dbias, int parts, int columns) {
  __shared__ float shared[TY][TX];
  const int column = blockIdx.x * TX + threadIdx.x;
  float sum = 0.0f;
  if (column < columns)
    for (int p = threadIdx.y; p < parts; p += TY) sum += sums[static_cast<int64_t>(p) * columns + column];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  float total = 0.0f;
#pragma unroll
  for (int y = 0; y < TY; ++y) total += shared[y][threadIdx.x];
  store(dbias + column, total);
}

}  // namespace neuscale
