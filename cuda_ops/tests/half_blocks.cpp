// Compares float16 conversion by the processor's instructions with the integer code of storage.h, and
// checks for writes beyond the end. Prints how many numbers differ.
#include "cpu/half_blocks.h"

#include <cmath>
#include <cstdio>
#include <memory>

using neuscale::Float16;

namespace {

bool is_nan(Float16 value) { return (value.bits & 0x7FFF) > 0x7C00; }

bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : neuscale::as_bits(a) == neuscale::as_bits(b);
}

bool same(Float16 a, Float16 b) { return is_nan(a) ? is_nan(b) : a.bits == b.bits; }

int64_t wrong_widened() {
  constexpr int64_t kCount = 65536;
  auto from = std::make_unique<Float16[]>(kCount);
  auto to = std::make_unique<float[]>(kCount);
  for (int64_t i = 0; i < kCount; ++i) from[i].bits = static_cast<uint16_t>(i);
  neuscale::widen(from.get(), to.get(), kCount);
  int64_t wrong = 0;
  for (int64_t i = 0; i < kCount; ++i) wrong += !same(to[i], neuscale::load(from[i]));
  return wrong;
}

// Float32 bit patterns that cover every exponent, and every tie between two float16 numbers with its
// neighbours.
int64_t wrong_narrowed() {
  constexpr int64_t kCount = int64_t{1} << 16;
  auto from = std::make_unique<float[]>(kCount);
  auto to = std::make_unique<Float16[]>(kCount);
  int64_t wrong = 0;
  for (uint64_t pass = 0; pass < 96; ++pass) {
    for (uint64_t i = 0; i < kCount; ++i) {
      const uint64_t step = pass < 64 ? i * 65521 + pass * 1021 : (i << 16) + ((pass - 64) << 11);
      const uint64_t near = pass < 64 ? step : step + (pass % 3) - 1;
      from[i] = neuscale::as_float(static_cast<int32_t>(static_cast<uint32_t>(near)));
    }
    neuscale::narrow(from.get(), to.get(), kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      Float16 expected;
      neuscale::store(&expected, from[i]);
      wrong += !same(to[i], expected);
    }
  }
  return wrong;
}

// Every length up to a few blocks of eight, in memory of exactly that length.
int64_t wrong_tails() {
  int64_t wrong = 0;
  for (int64_t count = 1; count <= 33; ++count) {
    auto values = std::make_unique<float[]>(count);
    auto halves = std::make_unique<Float16[]>(count);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) + 0.5f;
    neuscale::narrow(values.get(), halves.get(), count);
    neuscale::widen(halves.get(), values.get(), count);
    for (int64_t i = 0; i < count; ++i) wrong += values[i] != static_cast<float>(i) + 0.5f;
  }
  return wrong;
}

}  // namespace

int main() {
  const int64_t wrong = wrong_widened() + wrong_narrowed() + wrong_tails();
  std::printf("%lld numbers differ\n", static_cast<long long>(wrong));
  return wrong != 0;
}
