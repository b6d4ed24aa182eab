// Shared by the CUDA ops: stream, multiprocessor count, dispatch by type, float16 and bfloat16 access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include "../arguments.h"
#include "../gelu_math.h"

namespace neuscale {

__device__ __forceinline__ float load(float value) { return value; }
__device__ __forceinline__ float load(__half value) { return __half2float(value); }
__device__ __forceinline__ float load(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(__half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

template <>
inline constexpr Precision kPrecision<__half> = Precision::kFloat16;
template <>
inline constexpr Precision kPrecision<__nv_bfloat16> = Precision::kBFloat16;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int multiprocessors(const Tensor& tensor) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, tensor.get_device_index()));
  return count;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
struct TypeTag {
  using type = T;
};

template <typename F>
void with_cuda_type(ScalarType type, const char* argument, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Half:
      return f(TypeTag<__half>{});
    case ScalarType::BFloat16:
      return f(TypeTag<__nv_bfloat16>{});
    default:
      STD_TORCH_CHECK(false, argument, ": float32, float16 or bfloat16");
  }
}

}  // namespace neuscale
