// Checks that the ops make on their tensors before they access their memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "gelu_math.h"

namespace neuscale {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Return a contiguous version. A dispatcher call costs half a microsecond: make it only if needed.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Approximate approximate_of(int64_t value) {
  STD_TORCH_CHECK(value == 0 || value == 1, "approximate: 0 (none) or 1 (tanh), not ", value);
  return static_cast<Approximate>(value);
}

// Tensor as a matrix: the last dimension is the columns, all other dimensions are the rows.
struct Matrix {
  int64_t rows;
  int64_t columns;
};

inline Matrix matrix_of(const Tensor& x, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1, "x: one dimension or more, not a scalar");
  const int64_t columns = x.size(-1);
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == columns, "bias: shape [", columns,
                    "], the last dimension of x");
    STD_TORCH_CHECK(bias->device() == x.device(), "bias: on another device than x");
  }
  return {columns ? x.numel() / columns : 0, columns};
}

inline void check_like(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(grad.numel() == x.numel() && grad.dim() == x.dim() &&
                      grad.scalar_type() == x.scalar_type() && grad.device() == x.device(),
                  "grad: shape, dtype and device of x");
  for (int64_t i = 0; i < x.dim(); ++i)
    STD_TORCH_CHECK(grad.size(i) == x.size(i), "grad: the shape of x");
}

}  // namespace neuscale
