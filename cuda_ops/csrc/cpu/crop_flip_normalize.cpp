// Gather, pad, crop, flip, normalise and cast on the CPU: each output row is written once, from a
// table that holds the normalised value of each of the 256 bytes.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../crop_arguments.h"
#include "large_pages.h"

namespace neuscale {
namespace {

struct Row {
  int64_t before;  // number of zeros, followed by `count` pixels and zeros to the end of the row
  int64_t count;
};

// Write one row of `width` pixels; `source` points to its first pixel that is not padding.
template <typename T>
void write_row(const uint8_t* source, const T* table, T* to, int64_t width, Row row, bool flip) {
  const T zero = table[0];
  if (flip) {
    std::fill(to, to + width - row.before - row.count, zero);
    std::fill(to + width - row.before, to + width, zero);
    T* last = to + width - row.before - 1;
    for (int64_t i = 0; i < row.count; ++i) last[-i] = table[source[i]];
    return;
  }
  std::fill(to, to + row.before, zero);
  T* first = to + row.before;
  for (int64_t i = 0; i < row.count; ++i) first[i] = table[source[i]];
  std::fill(first + row.count, to + width, zero);
}

// T has the size of the output's type: values are copied from the table, not computed.
template <typename T>
void crop_images(const CropArguments& a, const T* table, T* out) {
  const int64_t plane = a.height * a.width;
  const int64_t per_image = a.channels * plane;
  const auto image = [&](int64_t b) {
    const int64_t down = a.top[b] - a.padding;
    const int64_t right = a.left[b] - a.padding;
    // Columns of the crop that are inside the image.
    const int64_t before = std::min(a.width, std::max<int64_t>(0, -right));
    const Row row{before, std::max<int64_t>(0, std::min(a.width, a.width - right) - before)};
    for (int64_t c = 0; c < a.channels; ++c) {
      const T* values = table + c * 256;
      const uint8_t* source = a.images + a.index[b] * per_image + c * plane;
      T* to = out + b * per_image + c * plane;
      for (int64_t y = 0; y < a.height; ++y, to += a.width) {
        const int64_t from = y + down;
        const bool inside = from >= 0 && from < a.height && row.count > 0;
        if (inside)
          write_row(source + from * a.width + right + before, values, to, a.width, row, a.flip[b]);
        else
          std::fill(to, to + a.width, values[0]);
      }
    }
  };
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, per_image));
  ask_for_large_pages(out, a.batch * per_image * sizeof(T));
  torch::stable::parallel_for(0, a.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) image(b);
  });
}

// On the CPU, all indices and offsets are checked before any image is read.
void check_ranges(const CropArguments& a) {
  const int64_t offsets = 2 * a.padding;
  for (int64_t b = 0; b < a.batch; ++b) {
    STD_TORCH_CHECK(a.index[b] >= 0 && a.index[b] < a.images_count, "index: ", a.index[b],
                    " at position ", b, ", but there are ", a.images_count, " images");
    STD_TORCH_CHECK(a.top[b] >= 0 && a.top[b] <= offsets, "top: ", a.top[b], " at position ", b,
                    ", but it lies in 0 … ", offsets);
    STD_TORCH_CHECK(a.left[b] >= 0 && a.left[b] <= offsets, "left: ", a.left[b], " at position ", b,
                    ", but it lies in 0 … ", offsets);
  }
}

Tensor crop_flip_normalize(const Tensor images, const Tensor index, const Tensor top,
                           const Tensor left, const Tensor flip, const Tensor table,
                           int64_t padding) {
  const CropTensors t(images, index, top, left, flip, table, padding);
  const CropArguments a = t.arguments();
  check_ranges(a);
  Tensor out = t.empty_output();
  if (out.numel() == 0) return out;
  if (table.scalar_type() == ScalarType::Float)
    crop_images(a, static_cast<const uint32_t*>(t.table.const_data_ptr()),
                static_cast<uint32_t*>(out.mutable_data_ptr()));
  else
    crop_images(a, static_cast<const uint16_t*>(t.table.const_data_ptr()),
                static_cast<uint16_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace neuscale

STABLE_TORCH_LIBRARY_IMPL(neuscale_ops, CPU, m) {
  m.impl("crop_flip_normalize", TORCH_BOX(&neuscale::crop_flip_normalize));
}
