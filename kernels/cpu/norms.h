// Cosines at any length: the rule of elva/ops/norms.py, applied where a row needs it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "vector.h"

namespace elva {

template <typename A>
struct Length {
  A inverse;  // 1 / |scale * x|, 0 for a zero vector
  A scale;    // a power of two, 1 for nearly every row
};

// The power of two that brings the largest element to 1: 0 for a zero vector, 1 where an element is not finite.
template <typename A>
A scale_of(const A* row, int64_t size) {
  constexpr A tiny = std::numeric_limits<A>::min();
  A largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(row[i])) return 1;
    largest = std::max(largest, std::fabs(row[i]));
  }
  if (largest < tiny) return 0;
  return 1 / std::min(std::exp2(static_cast<A>(std::ilogb(largest))), 1 / tiny);
}

// Length of a row in the accumulation type. Where its square over- or underflows, the row is moved to `buffer`, scaled.
template <typename A>
Length<A> length_of(const A*& row, A* buffer, int64_t size) {
  constexpr A most = std::is_same_v<A, float> ? A(0x1p80) : A(0x1p900);
  A squared = dot(row, row, size), scale = 1;
  if (!(squared >= 1 / most && squared <= most)) {
    scale = scale_of(row, size);
    for (int64_t i = 0; i < size; ++i) buffer[i] = row[i] * scale;
    row = buffer;
    squared = dot(row, row, size);
  }
  return {squared > 0 ? 1 / std::sqrt(squared) : A(0), scale};
}

}  // namespace elva
