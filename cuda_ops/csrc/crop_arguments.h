// Checked arguments of crop_flip_normalize, as raw pointers.
#pragma once

#include "arguments.h"
#include "crop_layout.h"

namespace neuscale {

// Owns contiguous versions of the tensors; it must outlive the pointers of arguments().
class CropTensors {
 public:
  CropTensors(const Tensor& images_given, const Tensor& index_given, const Tensor& top_given,
              const Tensor& left_given, const Tensor& flip_given, const Tensor& table_given,
              int64_t padding_given)
      : images(dense(images_given)), index(dense(index_given)), top(dense(top_given)),
        left(dense(left_given)), flip(dense(flip_given)), table(dense(table_given)),
        padding(padding_given) {
    STD_TORCH_CHECK(images.dim() == 4 && images.scalar_type() == ScalarType::Byte,
                    "images: uint8 [N, C, H, W]");
    check_row(index, ScalarType::Long, "index: int64 [B]");
    check_row(top, ScalarType::Long, "top: int64 [B]");
    check_row(left, ScalarType::Long, "left: int64 [B]");
    check_row(flip, ScalarType::Bool, "flip: bool [B]");
    const ScalarType type = table.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half ||
                        type == ScalarType::BFloat16,
                    "table: float32, float16 or bfloat16");
    STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == images.size(1) && table.size(1) == 256 &&
                        table.device() == images.device(),
                    "table: [C, 256] on the device of images");
    STD_TORCH_CHECK(padding >= 0, "padding: 0 or more, not ", padding);
  }

  CropArguments arguments() const {
    return {static_cast<const uint8_t*>(images.const_data_ptr()),
            static_cast<const int64_t*>(index.const_data_ptr()),
            static_cast<const int64_t*>(top.const_data_ptr()),
            static_cast<const int64_t*>(left.const_data_ptr()),
            static_cast<const bool*>(flip.const_data_ptr()),
            images.size(0), index.size(0), images.size(1), images.size(2), images.size(3),
            padding};
  }

  Tensor empty_output() const {
    return torch::stable::new_empty(
        images, {index.size(0), images.size(1), images.size(2), images.size(3)},
        table.scalar_type());
  }

  const Tensor images, index, top, left, flip, table;
  const int64_t padding;

 private:
  void check_row(const Tensor& row, ScalarType type, const char* words) const {
    STD_TORCH_CHECK(row.dim() == 1 && row.scalar_type() == type &&
                        row.size(0) == index.size(0) && row.device() == images.device(),
                    words, " on the device of images");
  }
};

}  // namespace neuscale
