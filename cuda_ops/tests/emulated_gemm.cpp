// GEMMs with an epilogue, run with a fake cuBLASLt: sizes, transposes, leading dimensions and pointers
// must match the formulas in epilogue_gemm.h.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cpu/storage.h"
#include "cuda/epilogue_gemm.h"

using namespace neuscale;
int live_cublaslt_objects();
int failures = 0;

std::vector<BFloat16> numbers(size_t count, unsigned seed) {
  std::vector<BFloat16> values(count);
  for (size_t i = 0; i < count; ++i)
    store(&values[i], static_cast<float>(((i + seed) * 2654435761u >> 8) % 201) / 100.0f - 1.0f);
  return values;
}

void expect(double found, double wanted, const char* what) {
  if (std::abs(found - wanted) <= 0.01 * (1 + std::abs(wanted))) return;
  if (++failures <= 5) std::printf("%s: %g, wanted %g\n", what, found, wanted);
}

void run(int64_t rows, int64_t columns, int64_t inner) {
  const auto a = numbers(rows * inner, 1), weight = numbers(columns * inner, 9), next = numbers(inner * columns, 4);
  auto bias = numbers(columns, 30), dbias = bias;
  std::vector<BFloat16> pre(rows * columns), out(rows * columns);
  EpilogueGemm gemm{Epilogue::kGelu, CUDA_R_16BF, rows, columns, inner, a.data(), weight.data(), bias.data(),
                    pre.data(), out.data(), nullptr, 0, 0, nullptr};
  if (run_epilogue_gemm(gemm) != CUBLAS_STATUS_SUCCESS) ++failures;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      double u = load(bias[c]);
      for (int64_t i = 0; i < inner; ++i) u += double(load(a[r * inner + i])) * load(weight[c * inner + i]);
      expect(load(pre[r * columns + c]), u, "pre");
      expect(load(out[r * columns + c]), gelu<Approximate::kTanh, Precision::kFloat32>(u), "gelu");
    }
  gemm.epilogue = Epilogue::kGeluBackward;
  gemm.b = next.data();
  gemm.bias = dbias.data();
  if (run_epilogue_gemm(gemm) != CUBLAS_STATUS_SUCCESS) ++failures;
  for (int64_t c = 0; c < columns; ++c) {
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      double d = 0;
      for (int64_t i = 0; i < inner; ++i) d += double(load(a[r * inner + i])) * load(next[i * columns + c]);
      d *= gelu_derivative<Approximate::kTanh, Precision::kFloat32>(load(pre[r * columns + c]));
      expect(load(out[r * columns + c]), d, "derivative");
      total += d;
    }
    expect(load(dbias[c]), total, "dbias");
  }
}

int main() {
  run(3, 8, 16), run(5, 24, 8), run(5, 24, 8), run(1, 16, 40);
  if (live_cublaslt_objects() != 0) ++failures, std::printf("descriptions were not freed\n");
  std::printf("%d numbers are off\n", failures);
  return failures != 0;
}
