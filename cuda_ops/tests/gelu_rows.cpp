// Runs the CPU's rows on numbers from standard input, so that another process can check the results:
//   gelu_rows float32|float16|bfloat16 none|tanh ROWS COLUMNS
// reads x, grad (both of the type) and the bias (float32); writes y, dx (of the type) and the sum over
// rows of dx (float32).
#include "cpu/gelu_rows.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace neuscale;

namespace {

template <typename T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != static_cast<size_t>(count)) std::exit(2);
  return values;
}

template <typename T>
void write(const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

template <typename T>
int run(Approximate form, int64_t rows, int64_t columns) {
  const auto x = read<T>(rows * columns), grad = read<T>(rows * columns);
  const auto bias = read<float>(columns);
  std::vector<T> y(rows * columns), dx(rows * columns);
  std::vector<float> sum(columns, 0.0f);
  forward_rows<T>(form)(x.data(), bias.data(), y.data(), rows, columns, columns);
  backward_rows<T>(form)(grad.data(), x.data(), bias.data(), dx.data(), sum.data(), rows, columns,
                         columns);
  write(y);
  write(dx);
  write(sum);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) return 2;
  const Approximate form = std::strcmp(words[2], "tanh") == 0 ? Approximate::kTanh : Approximate::kNone;
  const int64_t rows = std::atoll(words[3]), columns = std::atoll(words[4]);
  if (std::strcmp(words[1], "float32") == 0) return run<float>(form, rows, columns);
  if (std::strcmp(words[1], "float16") == 0) return run<Float16>(form, rows, columns);
  return run<BFloat16>(form, rows, columns);
}
