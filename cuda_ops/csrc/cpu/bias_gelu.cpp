// bias_gelu and its backward on the CPU: rows are distributed over torch's threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "gelu_rows.h"
#include "large_pages.h"

namespace neuscale {
namespace {

constexpr int64_t kGrain = 8192;      // elements; fewer are not worth a second thread
constexpr int64_t kWidest = 4096;     // columns of a segment, whose sums stay in the L1 cache
constexpr int64_t kChunkRows = 64;    // minimum rows per chunk of the bias gradient's sum
constexpr int64_t kMostChunks = 128;  // limits the memory of the chunks' sums

template <typename F>
auto with_type(ScalarType type, const char* argument, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Half:
      return f(Float16{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, argument, ": float32, float16 or bfloat16");
  }
}

// Bias as float32, zeros without a bias. Every NaN becomes the quiet NaN that store() keeps.
std::vector<float> bias_row(const std::optional<Tensor>& bias, int64_t columns) {
  std::vector<float> row(columns, 0.0f);
  if (!bias.has_value()) return row;
  const Tensor kept = dense(*bias);
  with_type(bias->scalar_type(), "bias", [&](auto type) {
    auto* from = static_cast<const decltype(type)*>(kept.const_data_ptr());
    for (int64_t c = 0; c < columns; ++c) {
      const float value = load(from[c]);
      row[c] = value == value ? value : std::numeric_limits<float>::quiet_NaN();
    }
  });
  return row;
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tensor bias_gelu(const Tensor x_given, const Tensor bias, int64_t approximate) {
  const Approximate form = approximate_of(approximate);
  const Matrix m = matrix_of(x_given, bias);
  const Tensor x = dense(x_given);
  Tensor y = torch::stable::empty_like(x);
  if (m.rows == 0) return y;
  const std::vector<float> row = bias_row(bias, m.columns);
  with_type(x.scalar_type(), "x", [&](auto type) {
    using T = decltype(type);
    auto* from = static_cast<const T*>(x.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    const ForwardRows<T> kernel = forward_rows<T>(form);
    ask_for_large_pages(to, x.numel() * sizeof(T));
    const int64_t width = std::min(m.columns, kWidest);
    const int64_t segments = ceil_divide(m.columns, width);
    if (segments == 1) {
      torch::stable::parallel_for(
          0, m.rows, std::max<int64_t>(1, kGrain / width), [&](int64_t begin, int64_t end) {
            const int64_t at = begin * m.columns;
            kernel(from + at, row.data(), to + at, end - begin, m.columns, m.columns);
          });
      return;
    }
    torch::stable::parallel_for(0, m.rows * segments, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i % segments * width;
        const int64_t at = i / segments * m.columns + column;
        kernel(from + at, row.data() + column, to + at, 1, std::min(width, m.columns - column),
               m.columns);
      }
    });
  });
  return y;
}

// The gradient of the bias is summed within chunks of rows and then over the chunks, in an order that
// depends only on the shape: the result is the same with any number of threads.
std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor grad_given, const Tensor x_given,
                                              std::optional<Tensor> bias, int64_t approximate) {
  const Approximate form = approximate_of(approximate);
  const Matrix m = matrix_of(x_given, bias);
  check_like(grad_given, x_given);
  const Tensor grad = dense(grad_given);
  const Tensor x = dense(x_given);
  Tensor dx = torch::stable::empty_like(x);
  const ScalarType bias_type = bias.has_value() ? bias->scalar_type() : x.scalar_type();
  Tensor dbias = torch::stable::new_empty(x, {m.columns}, bias_type);
  if (m.columns == 0) return {dx, dbias};
  const std::vector<float> row = bias_row(bias, m.columns);
  const int64_t chunks = std::clamp<int64_t>(m.rows / kChunkRows, 1, kMostChunks);
  const int64_t width = std::min(m.columns, kWidest);
  const int64_t segments = ceil_divide(m.columns, width);
  std::vector<float> sums(chunks * m.columns, 0.0f);
  with_type(x.scalar_type(), "x", [&](auto type) {
    using T = decltype(type);
    auto* from_grad = static_cast<const T*>(grad.const_data_ptr());
    auto* from_x = static_cast<const T*>(x.const_data_ptr());
    auto* to = static_cast<T*>(dx.mutable_data_ptr());
    const BackwardRows<T> kernel = backward_rows<T>(form);
    ask_for_large_pages(to, x.numel() * sizeof(T));
    const int64_t task = std::max<int64_t>(1, m.rows / chunks * width);
    torch::stable::parallel_for(
        0, chunks * segments, std::max<int64_t>(1, kGrain / task), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t chunk = i / segments;
            const int64_t column = i % segments * width;
            const int64_t first = m.rows * chunk / chunks;
            const int64_t last = m.rows * (chunk + 1) / chunks;
            const int64_t at = first * m.columns + column;
            kernel(from_grad + at, from_x + at, row.data() + column, to + at,
                   sums.data() + chunk * m.columns + column, last - first,
                   std::min(width, m.columns - column), m.columns);
          }
        });
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t c = 0; c < m.columns; ++c) sums[c] += sums[chunk * m.columns + c];
  with_type(bias_type, "bias", [&](auto type) {
    auto* to = static_cast<decltype(type)*>(dbias.mutable_data_ptr());
    for (int64_t c = 0; c < m.columns; ++c) store(to + c, sums[c]);
  });
  return {dx, dbias};
}

}  // namespace
}  // namespace neuscale

STABLE_TORCH_LIBRARY_IMPL(neuscale_ops, CPU, m) {
  m.impl("bias_gelu", TORCH_BOX(&neuscale::bias_gelu));
  m.impl("bias_gelu_backward", TORCH_BOX(&neuscale::bias_gelu_backward));
}
