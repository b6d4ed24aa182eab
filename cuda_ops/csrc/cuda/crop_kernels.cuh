// The CUDA kernel of crop_flip_normalize, independent of torch (see bias_gelu_kernels.cuh).
#pragma once

#include <cstdint>

#include "../crop_layout.h"
#include "bias_gelu_kernels.cuh"

namespace neuscale {

// A block writes one channel of one image of the batch: it looks bytes up in the channel's table of
// 256 values and copies their bits as T. N values are written in one access; N divides the width.
// Pixels outside the image get the value of byte 0, for any `top` and `left`. An image whose index is
// out of range is filled with `not_a_number`, because nothing may be read for it.
template <typename T, int N, int THREADS>
__global__ void __launch_bounds__(THREADS)
    crop_flip_normalize(CropArguments a, const T* __restrict__ table, T* __restrict__ out,
                        T not_a_number) {
  __shared__ T values[256];
  const int64_t b = blockIdx.x / a.channels;
  const int64_t c = blockIdx.x % a.channels;
  const int64_t image = a.index[b];
  const bool known = image >= 0 && image < a.images_count;
  for (int i = threadIdx.x; i < 256; i += THREADS) values[i] = known ? table[c * 256 + i] : not_a_number;
  __syncthreads();
  const int height = static_cast<int>(a.height), width = static_cast<int>(a.width);
  const int64_t plane = a.height * a.width;
  const uint8_t* source = a.images + ((known ? image : 0) * a.channels + c) * plane;
  T* to = out + blockIdx.x * plane;
  const int64_t down = a.top[b] - a.padding, right = a.left[b] - a.padding;
  const bool flip = a.flip[b];
  const int packs = width / N;
  for (int i = threadIdx.x; i < height * packs; i += THREADS) {
    const int y = i / packs, x = i % packs * N;
    const int64_t from = y + down;
    const bool inside = known && from >= 0 && from < height;
    Pack<T, N> pack;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int64_t column = (flip ? width - 1 - (x + k) : x + k) + right;
      const bool seen = inside && column >= 0 && column < width;
      pack.values[k] = values[seen ? source[from * width + column] : 0];
    }
    write_pack<T, N>(to + static_cast<int64_t>(y) * width + x, pack);
  }
}

}  // namespace neuscale
