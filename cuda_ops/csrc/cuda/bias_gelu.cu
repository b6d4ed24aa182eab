// bias_gelu and its backward on a GPU.
#include "launch.cuh"

#include <algorithm>
#include <tuple>

#include "bias_gelu_kernels.cuh"

namespace neuscale {
namespace {

constexpr int kThreadsX = 32;
constexpr int kThreadsY = 8;
constexpr int kBlocksPerProcessor = 8;  // 2048 threads, the maximum

// Blocks along x cover the columns; along y there are as many as the GPU runs at once, each looping
// over its rows.
dim3 grid_for(const Matrix& m, int per_thread, int processors) {
  const int64_t wide = (m.columns + kThreadsX * per_thread - 1) / (kThreadsX * per_thread);
  const int64_t tall = (m.rows + kThreadsY - 1) / kThreadsY;
  const int64_t room = std::max<int64_t>(1, int64_t{kBlocksPerProcessor} * processors / wide);
  return dim3(static_cast<unsigned>(wide), static_cast<unsigned>(std::min({tall, room, int64_t{65535}})));
}

void check_columns(const Matrix& m) {
  STD_TORCH_CHECK(m.columns < (int64_t{1} << 31) - 4096, "x: fewer than 2^31 columns on a GPU");
}

// Call f(type of x, type of bias, form), all three as compile-time tags; for bias types see bias_for.
template <typename F>
void with_types(ScalarType x, ScalarType bias, int64_t approximate, F&& f) {
  const auto with_bias = [&](auto form) {
    with_cuda_type(x, "x", [&](auto t) {
      if (bias == x)
        f(t, t, form);
      else
        f(t, TypeTag<float>{}, form);
    });
  };
  if (approximate_of(approximate) == Approximate::kTanh)
    with_bias(std::integral_constant<Approximate, Approximate::kTanh>{});
  else
    with_bias(std::integral_constant<Approximate, Approximate::kNone>{});
}

// Kernels exist for a bias of x's type and of float32; any other type is first converted to float32,
// which is exact.
Tensor bias_for(const Tensor& x, const Tensor& bias) {
  if (bias.scalar_type() == x.scalar_type() || bias.scalar_type() == ScalarType::Float) return dense(bias);
  with_cuda_type(bias.scalar_type(), "bias", [](auto) {});
  return dense(torch::stable::to(bias, ScalarType::Float));
}

Tensor forward(const Tensor x_given, const Tensor bias_given, int64_t approximate) {
  const Matrix m = matrix_of(x_given, bias_given);
  check_columns(m);
  const torch::stable::accelerator::DeviceGuard guard(x_given.get_device_index());
  const Tensor x = dense(x_given), bias = bias_for(x, bias_given);
  Tensor y = torch::stable::empty_like(x);
  if (m.rows == 0) return y;
  const cudaStream_t stream = current_stream(x);
  const int processors = multiprocessors(x);
  with_types(x.scalar_type(), bias.scalar_type(), approximate, [&](auto t, auto b, auto form) {
    using T = typename decltype(t)::type;
    using B = typename decltype(b)::type;
    auto* from = static_cast<const T*>(x.const_data_ptr());
    auto* row = static_cast<const B*>(bias.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    const dim3 block(kThreadsX, kThreadsY);
    constexpr int N = 16 / sizeof(T);
    if (m.columns % N == 0 && aligned(from) && aligned(to))
      bias_gelu_forward<T, B, decltype(form)::value, N, kThreadsX, kThreadsY>
          <<<grid_for(m, N, processors), block, 0, stream>>>(from, row, to, m.rows, m.columns);
    else
      bias_gelu_forward<T, B, decltype(form)::value, 1, kThreadsX, kThreadsY>
          <<<grid_for(m, 1, processors), block, 0, stream>>>(from, row, to, m.rows, m.columns);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor grad_given, const Tensor x_given,
                                    std::optional<Tensor> bias_given, int64_t approximate) {
  const Matrix m = matrix_of(x_given, bias_given);
  check_columns(m);
  check_like(grad_given, x_given);
  const torch::stable::accelerator::DeviceGuard guard(x_given.get_device_index());
  const Tensor grad = dense(grad_given), x = dense(x_given);
  std::optional<Tensor> bias;
  if (bias_given.has_value()) bias = bias_for(x, *bias_given);
  const ScalarType bias_type = bias_given.has_value() ? bias_given->scalar_type() : x.scalar_type();
  Tensor dx = torch::stable::empty_like(x);
  Tensor dbias = torch::stable::new_empty(x, {m.columns}, bias_type);
  if (m.columns == 0) return {dx, dbias};
  if (m.rows == 0) {
    torch::stable::zero_(dbias);
    return {dx, dbias};
  }
  const cudaStream_t stream = current_stream(x);
  const int processors = multiprocessors(x);
  with_types(x.scalar_type(), bias.has_value() ? bias->scalar_type() : x.scalar_type(), approximate, [&](auto t, auto b, auto form) {
    using T = typename decltype(t)::type;
    using B = typename decltype(b)::type;
    auto* from_grad = static_cast<const T*>(grad.const_data_ptr());
    auto* from_x = static_cast<const T*>(x.const_data_ptr());
    auto* row = bias.has_value() ? static_cast<const B*>(bias->const_data_ptr()) : nullptr;
    auto* to = static_cast<T*>(dx.mutable_data_ptr());
    constexpr int N = 16 / sizeof(T);
    const bool vector = m.columns % N == 0 && aligned(from_grad) && aligned(from_x) && aligned(to);
    const dim3 grid = grid_for(m, vector ? N : 1, processors), block(kThreadsX, kThreadsY);
    const Tensor sums = torch::stable::new_empty(x, {int64_t{grid.y}, m.columns}, ScalarType::Float);
    auto* parts = static_cast<float*>(sums.mutable_data_ptr());
    if (vector)
      bias_gelu_backward<T, B, decltype(form)::value, N, kThreadsX, kThreadsY>
          <<<grid, block, 0, stream>>>(from_grad, from_x, row, to, parts, m.rows, m.columns);
    else
      bias_gelu_backward<T, B, decltype(form)::value, 1, kThreadsX, kThreadsY>
          <<<grid, block, 0, stream>>>(from_grad, from_x, row, to, parts, m.rows, m.columns);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    with_cuda_type(bias_type, "bias", [&](auto result) {
      using R = typename decltype(result)::type;
      sum_parts<R, 32, 32><<<dim3((m.columns + 31) / 32), dim3(32, 32), 0, stream>>>(
          parts, static_cast<R*>(dbias.mutable_data_ptr()), grid.y, m.columns);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {dx, dbias};
}

}  // namespace
}  // namespace neuscale

STABLE_TORCH_LIBRARY_IMPL(neuscale_ops, CUDA, m) {
  m.impl("bias_gelu", TORCH_BOX(&neuscale::forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&neuscale::backward));
}

// Architectures that this library is compiled for, for build_info().
extern "C" __attribute__((visibility("default"))) const char* neuscale_ops_cuda_architectures() {
  return NEUSCALE_ARCHITECTURES;
}
