// Schemas of the ops. The Python functions check arguments for users; the C++ code checks only what
// would otherwise cause an invalid memory access.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(neuscale_ops, m) {
  m.def("bias_gelu(Tensor x, Tensor bias, int approximate) -> Tensor");
  m.def("bias_gelu_backward(Tensor grad, Tensor x, Tensor? bias, int approximate) -> (Tensor, Tensor)");
  // Implemented by the CUDA library only, in the epilogue of a GEMM.
  m.def("linear_gelu(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)");
  m.def("linear_gelu_backward(Tensor grad, Tensor weight, Tensor pre) -> (Tensor, Tensor)");
  m.def(
      "crop_flip_normalize(Tensor images, Tensor index, Tensor top, Tensor left, Tensor flip, "
      "Tensor table, int padding) -> Tensor");
}
