// Forward and backward of an MLP's fused hidden layer, as ops.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <tuple>

#include "../arguments.h"
#include "epilogue_gemm.h"

namespace neuscale {
namespace {

constexpr int64_t kWorkspace = 32 << 20;  // bytes, NVIDIA's recommendation for Hopper

void check_matrix(const Tensor& t, const Tensor& like, int64_t rows, int64_t columns, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, name, ": shape [", rows, ", ",
                  columns, "]");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), name,
                  ": dtype and device of the first argument");
}

void run(Epilogue epilogue, const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& pre,
         const Tensor& out) {
  const ScalarType type = a.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16,
                  "the epilogue takes float16 and bfloat16");
  const int64_t rows = a.size(0), inner = a.size(1), columns = out.size(1);
  STD_TORCH_CHECK(columns % 8 == 0 && inner % 8 == 0, "the epilogue takes multiples of 8 columns");
  for (const Tensor* t : {&a, &b, &bias, &pre, &out})
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t->const_data_ptr()) % 16 == 0,
                    "the epilogue takes tensors aligned to 16 bytes");
  const Tensor workspace = torch::stable::new_empty(a, {kWorkspace}, ScalarType::Byte);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(a.get_device_index(), &stream));
  const cublasStatus_t status = run_epilogue_gemm(
      {epilogue, type == ScalarType::Half ? CUDA_R_16F : CUDA_R_16BF, rows, columns, inner,
       a.const_data_ptr(), b.const_data_ptr(), bias.mutable_data_ptr(), pre.mutable_data_ptr(),
       out.mutable_data_ptr(), workspace.mutable_data_ptr(), static_cast<size_t>(kWorkspace),
       static_cast<int>(a.get_device_index()), static_cast<cudaStream_t>(stream)});
  STD_TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: ", cublasLtGetStatusName(status));
}

// x [M, K], weight [N, K], bias [N] → gelu(pre) and pre = x weight^T + bias, both [M, N].
std::tuple<Tensor, Tensor> linear_gelu(const Tensor x_given, const Tensor weight_given,
                                       const Tensor bias_given) {
  STD_TORCH_CHECK(x_given.dim() == 2 && weight_given.dim() == 2, "x, weight: two dimensions");
  const torch::stable::accelerator::DeviceGuard guard(x_given.get_device_index());
  const Tensor x = dense(x_given), weight = dense(weight_given), bias = dense(bias_given);
  const int64_t columns = weight.size(0);
  check_matrix(weight, x, columns, x.size(1), "weight");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == columns && bias.scalar_type() == x.scalar_type() &&
                      bias.device() == x.device(),
                  "bias: shape [", columns, "], dtype and device of x");
  Tensor out = torch::stable::new_empty(x, {x.size(0), columns});
  Tensor pre = torch::stable::new_empty(x, {x.size(0), columns});
  if (out.numel() > 0) run(Epilogue::kGelu, x, weight, bias, pre, out);
  return {out, pre};
}

// grad [M, P] of the next Linear, its weight [P, N], pre [M, N] → gradient of pre [M, N], and its sum
// over the rows, the gradient of the bias [N].
std::tuple<Tensor, Tensor> linear_gelu_backward(const Tensor grad_given, const Tensor weight_given,
                                                const Tensor pre_given) {
  STD_TORCH_CHECK(grad_given.dim() == 2 && pre_given.dim() == 2, "grad, pre: two dimensions");
  const torch::stable::accelerator::DeviceGuard guard(grad_given.get_device_index());
  const Tensor grad = dense(grad_given), weight = dense(weight_given), pre = dense(pre_given);
  const int64_t columns = pre.size(1);
  check_matrix(pre, grad, grad.size(0), columns, "pre");
  check_matrix(weight, grad, grad.size(1), columns, "weight");
  Tensor out = torch::stable::new_empty(grad, {grad.size(0), columns});
  Tensor dbias = torch::stable::new_empty(grad, {columns});
  if (out.numel() > 0)
    run(Epilogue::kGeluBackward, grad, weight, dbias, pre, out);
  else
    torch::stable::zero_(dbias);
  return {out, dbias};
}

}  // namespace
}  // namespace neuscale

STABLE_TORCH_LIBRARY_IMPL(neuscale_ops, CUDA, m) {
  m.impl("linear_gelu", TORCH_BOX(&neuscale::linear_gelu));
  m.impl("linear_gelu_backward", TORCH_BOX(&neuscale::linear_gelu_backward));
}
