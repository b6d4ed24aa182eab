// Bias + GELU for rows on the CPU, one function for each type and form.
#pragma once

#include <cstdint>

#include "storage.h"

namespace neuscale {

// y[r][c] = gelu(x[r][c] + bias[c]) for `rows` rows of `width` columns, `stride` elements apart.
template <typename T>
using ForwardRows = void (*)(const T* x, const float* bias, T* y, int64_t rows, int64_t width,
                             int64_t stride);

// dx = grad * gelu'(x + bias), and sum[c] += dx[r][c] before rounding, row by row.
template <typename T>
using BackwardRows = void (*)(const T* grad, const T* x, const float* bias, T* dx, float* sum,
                              int64_t rows, int64_t width, int64_t stride);

template <typename T>
ForwardRows<T> forward_rows(Approximate approximate);

template <typename T>
BackwardRows<T> backward_rows(Approximate approximate);

}  // namespace neuscale
