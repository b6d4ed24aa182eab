// crop_flip_normalize on a GPU.
#include "launch.cuh"

#include "../crop_arguments.h"
#include "crop_kernels.cuh"

namespace neuscale {
namespace {

constexpr int kThreads = 256;

// T is the unsigned integer that holds the bits of the output's type.
template <typename T>
void launch(const CropTensors& t, const Tensor& out, T not_a_number) {
  const CropArguments a = t.arguments();
  auto* table = static_cast<const T*>(t.table.const_data_ptr());
  auto* to = static_cast<T*>(out.mutable_data_ptr());
  const auto blocks = static_cast<unsigned>(a.batch * a.channels);
  const cudaStream_t stream = current_stream(out);
  constexpr int N = 16 / sizeof(T);
  if (a.width % N == 0 && aligned(to))
    crop_flip_normalize<T, N, kThreads><<<blocks, kThreads, 0, stream>>>(a, table, to, not_a_number);
  else
    crop_flip_normalize<T, 1, kThreads><<<blocks, kThreads, 0, stream>>>(a, table, to, not_a_number);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor crop(const Tensor images, const Tensor index, const Tensor top, const Tensor left,
            const Tensor flip, const Tensor table, int64_t padding) {
  const torch::stable::accelerator::DeviceGuard guard(images.get_device_index());
  const CropTensors t(images, index, top, left, flip, table, padding);
  Tensor out = t.empty_output();
  if (out.numel() == 0) return out;
  constexpr int64_t kLimit = (int64_t{1} << 31) - 4096;
  STD_TORCH_CHECK(images.size(2) * images.size(3) < kLimit && index.size(0) * images.size(1) < kLimit,
                  "images: H * W and B * C are below 2^31 on a GPU");
  switch (table.scalar_type()) {
    case ScalarType::Float:
      launch<uint32_t>(t, out, 0x7FC00000u);
      break;
    case ScalarType::Half:
      launch<uint16_t>(t, out, 0x7E00u);
      break;
    default:
      launch<uint16_t>(t, out, 0x7FC0u);
  }
  return out;
}

}  // namespace
}  // namespace neuscale

STABLE_TORCH_LIBRARY_IMPL(neuscale_ops, CUDA, m) {
  m.impl("crop_flip_normalize", TORCH_BOX(&neuscale::crop));
}
