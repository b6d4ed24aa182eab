// The ops by name. Their Python face checks arguments; what is checked in C++ is what would
// otherwise be a bad memory access.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(neuscale_ops, m) {
  m.def("bias_gelu(Tensor x, Tensor bias, int approximate) -> Tensor");
  m.def("bias_gelu_backward(Tensor grad, Tensor x, Tensor? bias, int approximate) -> (Tensor, Tensor)");
  // With the kernel of the CUDA library only: a GEMM's own epilogue.
  m.def("linear_gelu(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)");
  m.def("linear_gelu_backward(Tensor grad, Tensor weight, Tensor pre) -> (Tensor, Tensor)");
  m.def(
      "crop_flip_normalize(Tensor images, Tensor index, Tensor top, Tensor left, Tensor flip, "
      "Tensor table, int padding) -> Tensor");
}
