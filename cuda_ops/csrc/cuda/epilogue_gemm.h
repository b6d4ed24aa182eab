// cuBLASLt GEMMs whose epilogue is GELU's tanh form or its derivative; independent of torch.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace neuscale {

enum class Epilogue {
  // pre = a b^T + bias, out = gelu(pre); b is [columns, inner], as a Linear's weight.
  kGelu,
  // out = (a b) * gelu'(pre), bias = the sum of out over its rows; b is [inner, columns].
  kGeluBackward,
};

// All matrices are contiguous, row-major and of one 16-bit type: a is [rows, inner], out and pre are
// [rows, columns], bias is [columns]. Pointers are aligned to 16 bytes and `columns` is a multiple
// of 8, as cuBLASLt requires for the auxiliary matrix.
struct EpilogueGemm {
  Epilogue epilogue;
  cudaDataType_t type;
  int64_t rows, columns, inner;
  const void* a;
  const void* b;
  void* bias;
  void* pre;
  void* out;
  void* workspace;
  size_t workspace_bytes;
  int device;
  cudaStream_t stream;
};

// Run the GEMM on its stream. Returns CUBLAS_STATUS_NOT_SUPPORTED if cuBLASLt has no algorithm for
// it. The chosen algorithm is cached by device, epilogue, type and shape.
cublasStatus_t run_epilogue_gemm(const EpilogueGemm& gemm);

}  // namespace neuscale
