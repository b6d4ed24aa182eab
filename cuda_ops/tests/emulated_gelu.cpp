// CUDA kernels of bias_gelu, emulated on the CPU at small, mostly uneven shapes, compared with double
// arithmetic. Prints the shape of wrong numbers, and then exits with 1.
#include <memory>

#include "cuda_emulation.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cpu/storage.h"
#include "cuda/bias_gelu_kernels.cuh"

using emulation::Memory;
using namespace neuscale;

constexpr int kTX = 4, kTY = 3;
int failures = 0;

double cdf(double u, Approximate form) {
  if (form == Approximate::kNone) return std::erfc(-u * std::sqrt(0.5)) / 2;
  return 1 / (1 + std::exp(-std::sqrt(8 / M_PI) * (u + 0.044715 * u * u * u)));
}

double derivative(double u, Approximate form) {
  const double c = cdf(u, form);
  if (form == Approximate::kNone) return c + u * std::exp(-u * u / 2) / std::sqrt(2 * M_PI);
  return c + u * c * (1 - c) * std::sqrt(8 / M_PI) * (1 + 3 * 0.044715 * u * u);
}

// Deterministic number in -4 … 4.
float number(size_t i) { return static_cast<float>((i * 2654435761u >> 7) % 8001) / 1000.0f - 4.0f; }

template <typename T>
void fill(const Memory<T>& memory, size_t seed) {
  for (size_t i = 0; i < memory.size(); ++i) store(&memory[i], number(i + seed));
}

template <typename T>
constexpr double kTolerance = sizeof(T) == 4 ? 2e-6 : std::is_same_v<T, Float16> ? 1e-3 : 8e-3;

void expect(double found, double wanted, double tolerance, const char* what, int64_t rows, int columns) {
  if (std::abs(found - wanted) <= tolerance * (1 + std::abs(wanted))) return;
  if (++failures <= 5) std::printf("%s at %ld x %d: %g, wanted %g\n", what, long(rows), columns, found, wanted);
}

template <typename T, typename B, Approximate A, int N>
void run(int64_t rows, int columns, unsigned tall, bool with_bias) {
  const size_t count = rows * columns;
  Memory<T> x(count), grad(count), y(count), dx(count);
  Memory<B> bias(columns), dbias(columns);
  Memory<float> sums(size_t{tall} * columns);
  fill(x, 1), fill(grad, 77), fill(bias, 5);
  const B* row = with_bias ? bias.data() : nullptr;
  const dim3 grid{static_cast<unsigned>((columns / N + kTX - 1) / kTX), tall}, block{kTX, kTY};
  emulation::launch(grid, block, [&] {
    bias_gelu_forward<T, B, A, N, kTX, kTY>(x.data(), row, y.data(), rows, columns);
  });
  emulation::launch(grid, block, [&] {
    bias_gelu_backward<T, B, A, N, kTX, kTY>(grad.data(), x.data(), row, dx.data(), sums.data(), rows, columns);
  });
  emulation::launch({static_cast<unsigned>((columns + kTX - 1) / kTX)}, block, [&] {
    sum_parts<B, kTX, kTY>(sums.data(), dbias.data(), tall, columns);
  });
  for (int c = 0; c < columns; ++c) {
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const size_t i = r * columns + c;
      const double u = double(load(x[i])) + (with_bias ? load(bias[c]) : 0.0f);
      expect(load(y[i]), u * cdf(u, A), kTolerance<T>, "forward", rows, columns);
      const double d = load(grad[i]) * derivative(u, A);
      expect(load(dx[i]), d, kTolerance<T>, "dx", rows, columns);
      total += d;
    }
    expect(load(dbias[c]), total, std::max(kTolerance<B>, 20 * kTolerance<float>) + (sizeof(T) == 2) * 2e-4,
           "dbias", rows, columns);
  }
}

int main() {
  for (const int64_t rows : {1, 2, 3, 7, 20})
    for (const unsigned tall : {1u, 2u, 5u}) {
      run<float, float, Approximate::kNone, 4>(rows, 4, tall, true);
      run<float, float, Approximate::kTanh, 4>(rows, 20, tall, true);
      run<float, float, Approximate::kNone, 1>(rows, 13, tall, false);
      run<BFloat16, float, Approximate::kTanh, 8>(rows, 40, tall, true);
      run<BFloat16, BFloat16, Approximate::kNone, 1>(rows, 5, tall, true);
      run<Float16, Float16, Approximate::kNone, 8>(rows, 32, tall, true);
      run<Float16, float, Approximate::kTanh, 1>(rows, 3, tall, true);
    }
  std::printf("%d numbers are off\n", failures);
  return failures != 0;
}
