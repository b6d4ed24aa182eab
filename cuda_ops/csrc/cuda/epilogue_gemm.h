// GEMMs whose epilogue is GELU's tanh form or its derivative, by cuBLASLt; free of torch.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace neuscale {

enum class Epilogue {
  // pre = a b^T + bias, out = gelu(pre); b is [columns, inner], as a Linear's weight.
  kGelu,
  // out = (a b) * gelu'(pre), bias = out's sum over rows; b is [inner, columns].
  kGeluBackward,
};

// All matrices are dense and in rows, of one 16-bit type: a is [rows, inner], out and pre are
// [rows, columns], bias is [columns]. Pointers are aligned to 16 bytes and `columns` is a
// multiple of 8, as cuBLASLt asks of the auxiliary matrix.
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

// Runs it on the stream. The status is CUBLAS_STATUS_NOT_SUPPORTED where cuBLASLt has no
// algorithm for it. The choice of algorithm is kept for each device, type and shape.
cublasStatus_t run_epilogue_gemm(const EpilogueGemm& gemm);

}  // namespace neuscale
