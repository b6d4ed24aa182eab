// Arguments of the CPU loop and the CUDA kernel of crop_flip_normalize; independent of torch.
#pragma once

#include <cstdint>

namespace neuscale {

struct CropArguments {
  const uint8_t* images;  // [images_count, channels, height, width]
  const int64_t* index;   // [batch], like the three below
  const int64_t* top;
  const int64_t* left;
  const bool* flip;
  int64_t images_count, batch, channels, height, width, padding;
};

}  // namespace neuscale
