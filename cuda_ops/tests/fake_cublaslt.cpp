// Fake of the few cuBLASLt functions that epilogue_gemm.cpp calls, on the CPU in float64, written from
// their documentation: column-major matrices, an operation for each operand, and the two epilogues. It
// checks layouts and pointers against that documentation; it proves nothing about a real GPU.
#include <cublasLt.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "cpu/storage.h"

using neuscale::BFloat16;

struct Fields {
  std::map<int, std::vector<char>> values;
  template <typename T>
  T get(int name) const {
    T value{};
    const auto& bytes = values.at(name);
    if (bytes.size() != sizeof value) std::abort();  // an attribute of the wrong size
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
};

struct Shape {
  uint64_t rows, columns;
  int64_t leading;
};

namespace {

int live = 0;

template <typename Handle, typename T>
Handle handle_to(T* made) {
  ++live;
  return reinterpret_cast<Handle>(made);
}

template <typename T>
cublasStatus_t destroy(void* made) {
  --live;
  delete static_cast<T*>(made);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t put(void* fields, int name, const void* value, size_t bytes) {
  auto* from = static_cast<const char*>(value);
  static_cast<Fields*>(fields)->values[name].assign(from, from + bytes);
  return CUBLAS_STATUS_SUCCESS;
}

double read(const void* matrix, const Shape& shape, int64_t row, int64_t column) {
  return load(static_cast<const BFloat16*>(matrix)[column * shape.leading + row]);
}

}  // namespace

int live_cublaslt_objects() { return live; }

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(&live);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute, cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  *d = handle_to<cublasLtMatmulDesc_t>(new Fields);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return destroy<Fields>(d); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name,
                                              const void* value, size_t bytes) {
  return put(d, name, value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType_t type, uint64_t rows,
                                          uint64_t columns, int64_t leading) {
  if (type != CUDA_R_16BF) return CUBLAS_STATUS_NOT_SUPPORTED;
  *l = handle_to<cublasLtMatrixLayout_t>(new Shape{rows, columns, leading});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return destroy<Shape>(l); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
  *p = handle_to<cublasLtMatmulPreference_t>(new Fields);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return destroy<Fields>(p); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t name, const void* value,
                                                    size_t bytes) {
  return put(p, name, value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatmulPreference_t p, int,
                                              cublasLtMatmulHeuristicResult_t*, int* count) {
  reinterpret_cast<Fields*>(p)->get<uint64_t>(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
  reinterpret_cast<Fields*>(p)->get<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void*, const void* A,
                              cublasLtMatrixLayout_t la, const void* B, cublasLtMatrixLayout_t lb, const void*,
                              const void*, cublasLtMatrixLayout_t, void* D, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
  const auto& fields = *reinterpret_cast<const Fields*>(d);
  const Shape &a = *reinterpret_cast<Shape*>(la), &b = *reinterpret_cast<Shape*>(lb),
              &out = *reinterpret_cast<Shape*>(ld);
  const bool ta = fields.get<cublasOperation_t>(CUBLASLT_MATMUL_DESC_TRANSA) == CUBLAS_OP_T;
  if (fields.get<cublasOperation_t>(CUBLASLT_MATMUL_DESC_TRANSB) != CUBLAS_OP_N)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const uint64_t inner = ta ? a.rows : a.columns;
  if ((ta ? a.columns : a.rows) != out.rows || b.columns != out.columns || b.rows != inner)
    return CUBLAS_STATUS_INVALID_VALUE;
  const auto epilogue = fields.get<cublasLtEpilogue_t>(CUBLASLT_MATMUL_DESC_EPILOGUE);
  auto* bias = static_cast<BFloat16*>(fields.get<void*>(CUBLASLT_MATMUL_DESC_BIAS_POINTER));
  auto* aux = static_cast<BFloat16*>(fields.get<void*>(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER));
  const auto aux_leading = fields.get<int64_t>(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
  if (aux_leading % 8 || aux_leading < static_cast<int64_t>(out.rows)) return CUBLAS_STATUS_INVALID_VALUE;
  const double k = std::sqrt(2 / M_PI);
  std::vector<double> sums(out.rows, 0.0);
  for (uint64_t column = 0; column < out.columns; ++column)
    for (uint64_t row = 0; row < out.rows; ++row) {
      double sum = 0;
      for (uint64_t i = 0; i < inner; ++i)
        sum += (ta ? read(A, a, i, row) : read(A, a, row, i)) * read(B, b, i, column);
      BFloat16& kept = aux[column * aux_leading + row];
      double result = 0;
      if (epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS) {
        const double u = sum + load(bias[row]);
        store(&kept, static_cast<float>(u));
        result = 0.5 * u * (1 + std::tanh(k * (u + 0.044715 * u * u * u)));
      } else if (epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD) {
        const double u = load(kept), t = std::tanh(k * (u + 0.044715 * u * u * u));
        result = sum * (0.5 * (1 + t) + 0.5 * u * (1 - t * t) * k * (1 + 3 * 0.044715 * u * u));
        sums[row] += result;
      } else {
        return CUBLAS_STATUS_NOT_SUPPORTED;
      }
      store(static_cast<BFloat16*>(D) + column * out.leading + row, static_cast<float>(result));
    }
  if (epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD)
    for (uint64_t row = 0; row < out.rows; ++row) store(&bias[row], static_cast<float>(sums[row]));
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
