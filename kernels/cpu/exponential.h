// exp for whole rows. std::exp is a call an element; this form is vectorised by the compiler.
#pragma once

#include <cmath>
#include <cstdint>

#include "vector.h"

namespace elva {

// Within two units in the last place of float32 for x <= 88; 0 below -87; NaN stays NaN.
ELVA_INLINE float exponential(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;  // NaN fails the comparison and goes on
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t power = (__builtin_bit_cast(int32_t, shifted) - 0x4b400000 + 127) << 23;
  const float result = p * __builtin_bit_cast(float, power);
  return x < -87.0f ? 0.0f : result;
}
ELVA_INLINE double exponential(double x) { return std::exp(x); }

template <typename A>
struct Sums {
  A total, weighted;  // of p, and of p * log p
};

// row[i] = p = exp(row[i] * scale - highest), with the sums of p and of p * log p.
template <typename A>
ELVA_INLINE Sums<A> exponentials_body(A* row, int64_t size, A scale, A highest) {
  constexpr int64_t lanes = 16;
  A total[lanes] = {}, weighted[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    for (int64_t k = 0; k < lanes; ++k) {
      const A z = row[i + k] * scale - highest, p = exponential(z);
      row[i + k] = p;
      total[k] += p;
      weighted[k] += p * z;
    }
  }
  for (; i < size; ++i) {
    const A z = row[i] * scale - highest, p = exponential(z);
    row[i] = p;
    total[0] += p;
    weighted[0] += p * z;
  }
  Sums<A> sums{0, 0};
  for (int64_t k = 0; k < lanes; ++k) sums.total += total[k], sums.weighted += weighted[k];
  return sums;
}

// Sum of exp(row[i] - highest).
template <typename A>
ELVA_INLINE A exponential_sum_body(const A* row, int64_t size, A highest) {
  constexpr int64_t lanes = 16;
  A total[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) total[k] += exponential(row[i + k] - highest);
  for (; i < size; ++i) total[0] += exponential(row[i] - highest);
  A sum = 0;
  for (A value : total) sum += value;
  return sum;
}

template <typename A>
ELVA_INLINE A maximum_body(const A* row, int64_t size) {
  constexpr int64_t lanes = 16;
  A best[lanes];
  for (A& value : best) value = row[0];
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    for (int64_t k = 0; k < lanes; ++k) best[k] = row[i + k] > best[k] ? row[i + k] : best[k];
  }
  for (; i < size; ++i) best[0] = row[i] > best[0] ? row[i] : best[0];
  A highest = best[0];
  for (A value : best) highest = value > highest ? value : highest;
  return highest;
}

[[maybe_unused]] ELVA_CLONES static Sums<float> exponentials(float* row, int64_t size, float scale, float highest) {
  return exponentials_body(row, size, scale, highest);
}
[[maybe_unused]] static Sums<double> exponentials(double* row, int64_t size, double scale, double highest) {
  return exponentials_body(row, size, scale, highest);
}
[[maybe_unused]] ELVA_CLONES static float maximum(const float* row, int64_t size) { return maximum_body(row, size); }
[[maybe_unused]] static double maximum(const double* row, int64_t size) { return maximum_body(row, size); }

}  // namespace elva
