// Operations on one row of the score matrix, compiled once per instruction set: what a framework's elementwise kernels do.
#pragma once

#include <cstdint>

#include "tessera/types.h"

namespace tessera::internal::standard_rows {

// row[j] *= factor.
void scale(float* row, std::int64_t size, float factor);
// row[j] *= other[j].
void multiply(float* row, const float* other, std::int64_t size);
// row[j] += other[j].
void add(float* row, const float* other, std::int64_t size);
// row[j] = cap * tanh(row[j] / cap); with `derivative`, also derivative[j] = 1 - tanh^2.
void softcap(float* row, float* derivative, std::int64_t size, float cap);
// row[j] -= slope * |position - j|.
void subtract_distance(float* row, std::int64_t size, float slope, std::int64_t position);
// Rounds to the nearest value of a 16-bit dtype, ties to even; nothing for float32.
void round(float* row, std::int64_t size, DType dtype);
// The largest element; -inf for an empty row. A NaN may be passed over.
float max(const float* row, std::int64_t size);
// row[j] = exp(row[j] - shift); returns the sum.
float exp(float* row, std::int64_t size, float shift);
// gradient[j] = weight[j] * (gradient[j] + shift).
void softmax_gradient(const float* weight, float* gradient, std::int64_t size, float shift);
// The sum of a[j] * b[j].
float dot(const float* a, const float* b, std::int64_t size);
// Whether every element is finite.
bool finite(const float* row, std::int64_t size);

}  // namespace tessera::internal::standard_rows
