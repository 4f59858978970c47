// Vector primitives of the CPU kernels, compiled for several instruction sets and chosen when the library is loaded.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// No -march=native: one build serves every x86-64. The resolver behind target_clones needs glibc, arch= levels g++ 12.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define ELVA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ELVA_CLONES
#endif
#define ELVA_INLINE inline __attribute__((always_inline))

namespace elva {

// Four vectors of partial sums, added in a fixed order: equal inputs give equal bits, whatever row they come from.
template <typename A>
ELVA_INLINE A dot_body(const A* __restrict a, const A* __restrict b, int64_t size) {
  typedef A Vector __attribute__((vector_size(64)));
  constexpr int64_t width = 64 / sizeof(A);
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * width <= size; i += 4 * width) {
    for (int k = 0; k < 4; ++k) {
      Vector x, y;
      std::memcpy(&x, a + i + k * width, sizeof(x));
      std::memcpy(&y, b + i + k * width, sizeof(y));
      sums[k] += x * y;
    }
  }
  for (; i < size; i += width) {
    const int64_t rest = size - i < width ? size - i : width;
    Vector x = {}, y = {};
    std::memcpy(&x, a + i, rest * sizeof(A));
    std::memcpy(&y, b + i, rest * sizeof(A));
    sums[0] += x * y;
  }
  const Vector lanes = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  A total = 0;
  for (int64_t k = 0; k < width; ++k) total += lanes[k];
  return total;
}

template <typename A>
ELVA_INLINE void add_scaled_body(A* __restrict y, A scale, const A* __restrict x, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] += scale * x[i];
}

// The clones are plain functions: g++ does not clone templates.
[[maybe_unused]] ELVA_CLONES static float dot(const float* a, const float* b, int64_t size) { return dot_body(a, b, size); }
[[maybe_unused]] ELVA_CLONES static double dot(const double* a, const double* b, int64_t size) { return dot_body(a, b, size); }

// y += scale * x
[[maybe_unused]] ELVA_CLONES static void add_scaled(float* y, float scale, const float* x, int64_t size) {
  add_scaled_body(y, scale, x, size);
}
[[maybe_unused]] ELVA_CLONES static void add_scaled(double* y, double scale, const double* x, int64_t size) {
  add_scaled_body(y, scale, x, size);
}

// A row of T as its accumulation type A: itself, or converted into `buffer` of `size` elements.
template <typename T, typename A>
const A* widen(const T* row, A* buffer, int64_t size) {
  if constexpr (std::is_same_v<T, A>) {
    return row;
  } else {
    for (int64_t i = 0; i < size; ++i) buffer[i] = static_cast<A>(row[i]);
    return buffer;
  }
}

template <typename T, typename A>
void narrow(const A* values, T* row, int64_t size) {
  for (int64_t i = 0; i < size; ++i) row[i] = static_cast<T>(values[i]);
}

}  // namespace elva
