// CUDA kernel of crop_flip_normalize, emulated on the CPU, compared with a loop over single pixels.
#include <memory>

#include "cuda_emulation.h"

#include <cstdio>

#include "cpu/storage.h"
#include "cuda/crop_kernels.cuh"

using emulation::Memory;
using namespace neuscale;

constexpr int kThreads = 12;
int failures = 0;

template <typename T, int N>
void run(int64_t height, int64_t width, int64_t padding) {
  constexpr int64_t kImages = 3, kChannels = 2, kBatch = 6;
  const int64_t plane = height * width;
  Memory<uint8_t> images(kImages * kChannels * plane);
  Memory<int64_t> index(kBatch), top(kBatch), left(kBatch);
  Memory<bool> flip(kBatch);
  Memory<T> table(kChannels * 256), out(kBatch * kChannels * plane);
  for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(i * 2654435761u >> 11);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<T>(i * 97 + 3);
  for (int64_t b = 0; b < kBatch; ++b) {
    index[b] = (b * 2 + 1) % kImages;
    top[b] = b * 5 % (2 * padding + 1);
    left[b] = b * 7 % (2 * padding + 1);
    flip[b] = b % 2;
  }
  index[2] = kImages, index[3] = -1;                    // no such images
  top[4] = 5000000000, left[5] = -5000000000;           // crops outside of the image
  const CropArguments a{images.data(), index.data(), top.data(), left.data(), flip.data(), kImages,
                        kBatch, kChannels, height, width, padding};
  constexpr T kNaN = static_cast<T>(0xFFFF);
  emulation::launch({static_cast<unsigned>(kBatch * kChannels)}, {kThreads},
                    [&] { crop_flip_normalize<T, N, kThreads>(a, table.data(), out.data(), kNaN); });
  size_t i = 0;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t c = 0; c < kChannels; ++c)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x, ++i) {
          const int64_t sy = y + top[b] - padding;
          const int64_t sx = (flip[b] ? width - 1 - x : x) + left[b] - padding;
          const bool known = index[b] >= 0 && index[b] < kImages;
          uint8_t byte = 0;
          if (known && sy >= 0 && sy < height && sx >= 0 && sx < width)
            byte = images[((index[b] * kChannels + c) * height + sy) * width + sx];
          const T wanted = known ? table[c * 256 + byte] : kNaN;
          if (out[i] != wanted && ++failures <= 5)
            std::printf("%ldx%ld, padding %ld: image %ld, pixel %ld, %ld\n", long(height), long(width),
                        long(padding), long(b), long(y), long(x));
        }
}

int main() {
  for (const int64_t padding : {0, 1, 4, 9}) {
    run<uint32_t, 4>(5, 8, padding);
    run<uint32_t, 1>(4, 7, padding);
    run<uint16_t, 8>(3, 16, padding);
    run<uint16_t, 1>(1, 1, padding);
  }
  std::printf("%d pixels are off\n", failures);
  return failures != 0;
}
