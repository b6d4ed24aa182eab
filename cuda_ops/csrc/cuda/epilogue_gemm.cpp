#include "epilogue_gemm.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace neuscale {
namespace {

// Deleter for an object made by a cuBLASLt create function.
template <auto Destroy>
struct Destroyer {
  template <typename T>
  void operator()(T* opaque) const {
    Destroy(opaque);
  }
};
template <typename T, auto Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Destroyer<Destroy>>;
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

#define NEUSCALE_TRY(EXPRESSION)                                             \
  do {                                                                       \
    const cublasStatus_t status_ = (EXPRESSION);                             \
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_;                    \
  } while (0)

template <typename T>
cublasStatus_t set(const Description& description, cublasLtMatmulDescAttributes_t name, T value) {
  return cublasLtMatmulDescSetAttribute(description.get(), name, &value, sizeof value);
}

cublasStatus_t make_layout(Layout& layout, cudaDataType_t type, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t made = nullptr;
  NEUSCALE_TRY(cublasLtMatrixLayoutCreate(&made, type, rows, columns, rows));
  layout.reset(made);
  return CUBLAS_STATUS_SUCCESS;
}

// cuBLASLt uses column-major order and reads a row-major matrix as its transpose. So it computes
// out^T [columns, rows] from op(b) and a^T.
cublasStatus_t describe(const EpilogueGemm& g, Description& description) {
  cublasLtMatmulDesc_t made = nullptr;
  NEUSCALE_TRY(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  description.reset(made);
  const bool forward = g.epilogue == Epilogue::kGelu;
  NEUSCALE_TRY(set(description, CUBLASLT_MATMUL_DESC_TRANSA, forward ? CUBLAS_OP_T : CUBLAS_OP_N));
  NEUSCALE_TRY(set(description, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
  NEUSCALE_TRY(set(description, CUBLASLT_MATMUL_DESC_EPILOGUE,
                   forward ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_DGELU_BGRAD));
  NEUSCALE_TRY(set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias));
  NEUSCALE_TRY(set(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g.pre));
  return set(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, g.columns);
}

using Key = std::tuple<int, Epilogue, cudaDataType_t, int64_t, int64_t, int64_t>;
std::mutex mutex;
std::map<int, cublasLtHandle_t> handles;  // by device; they live as long as the process
std::map<Key, cublasLtMatmulAlgo_t> algorithms;

cublasStatus_t handle_of(int device, cublasLtHandle_t* handle) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = handles.find(device);
  if (found == handles.end()) {
    NEUSCALE_TRY(cublasLtCreate(handle));
    handles.emplace(device, *handle);
    return CUBLAS_STATUS_SUCCESS;
  }
  *handle = found->second;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

cublasStatus_t run_epilogue_gemm(const EpilogueGemm& g) {
  cublasLtHandle_t handle = nullptr;
  NEUSCALE_TRY(handle_of(g.device, &handle));
  Description description;
  NEUSCALE_TRY(describe(g, description));
  Layout b, a, out;
  if (g.epilogue == Epilogue::kGelu)
    NEUSCALE_TRY(make_layout(b, g.type, g.inner, g.columns));
  else
    NEUSCALE_TRY(make_layout(b, g.type, g.columns, g.inner));
  NEUSCALE_TRY(make_layout(a, g.type, g.inner, g.rows));
  NEUSCALE_TRY(make_layout(out, g.type, g.columns, g.rows));

  const Key key{g.device, g.epilogue, g.type, g.rows, g.columns, g.inner};
  cublasLtMatmulAlgo_t algorithm;
  bool known = false;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = algorithms.find(key);
    if ((known = found != algorithms.end())) algorithm = found->second;
  }
  if (!known) {
    cublasLtMatmulPreference_t made = nullptr;
    NEUSCALE_TRY(cublasLtMatmulPreferenceCreate(&made));
    const Preference preference(made);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, auto value) {
      return cublasLtMatmulPreferenceSetAttribute(preference.get(), name, &value, sizeof value);
    };
    NEUSCALE_TRY(prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{g.workspace_bytes}));
    for (const auto name :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      NEUSCALE_TRY(prefer(name, uint32_t{16}));
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    NEUSCALE_TRY(cublasLtMatmulAlgoGetHeuristic(handle, description.get(), b.get(), a.get(), out.get(),
                                                out.get(), preference.get(), 1, &best, &count));
    if (count == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    algorithm = best.algo;
    const std::lock_guard<std::mutex> lock(mutex);
    algorithms.emplace(key, algorithm);
  }
  const float one = 1.0f, zero = 0.0f;
  return cublasLtMatmul(handle, description.get(), &one, g.b, b.get(), g.a, a.get(), &zero, g.out, out.get(),
                        g.out, out.get(), &algorithm, g.workspace, g.workspace_bytes, g.stream);
}

}  // namespace neuscale
