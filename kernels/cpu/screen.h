// Scores in bfloat16 that may be above a threshold in float32:
//
//     |q·k - q'·k'| <= |q - q'| |k| + |q'| |k - k'|      (q', k': rounded to bfloat16)
//
// At the ends of float32 a bound may itself overflow or vanish: then it is one that lets pass.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "vector.h"

namespace elva {

constexpr int64_t kScan = 64;  // scores compared before anything else is decided
// Scores in bfloat16 are themselves rounded (2^-9 of the score); sums in float32 lose far less than as much again.
constexpr float kRoundedScore = 0x1p-8f;
// More than products below float32's smallest normal number can add up to, which a library may take for 0.
constexpr float kVanished = 0x1p-100f;

// Lossless where x is representable; ties to even, NaN and infinity kept.
ELVA_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}
ELVA_INLINE float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Rounds a row, and returns the squared norm of what was lost.
[[maybe_unused]] ELVA_CLONES static float round_row(const float* row, uint16_t* rounded, int64_t size) {
  float lost = 0;
  for (int64_t i = 0; i < size; ++i) {
    rounded[i] = to_bfloat16(row[i]);
    const float rest = row[i] - from_bfloat16(rounded[i]);
    lost += rest * rest;
  }
  return lost;
}

struct Norms {
  float row, lost;  // |x| and |x - x'|
};

// In double, which holds every square.
[[maybe_unused]] static Norms exact_norms(const float* row, const uint16_t* rounded, int64_t size) {
  double squared = 0, lost = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double value = row[i], rest = value - from_bfloat16(rounded[i]);
    squared += value * value, lost += rest * rest;
  }
  return {static_cast<float>(std::sqrt(squared)), static_cast<float>(std::sqrt(lost))};
}

// Bit i of the result: scores[i] > threshold.
[[maybe_unused]] ELVA_CLONES static uint64_t above(const float* scores, int64_t size, float threshold) {
  uint64_t hits = 0;
  if (size == kScan) {
    int any = 0;
    for (int64_t i = 0; i < kScan; ++i) any |= scores[i] > threshold;
    if (!any) return 0;
  }
  for (int64_t i = 0; i < size; ++i) hits |= static_cast<uint64_t>(scores[i] > threshold) << i;
  return hits;
}

// The same for bounds: one that is NaN, as infinity times 0 is, excludes nothing.
[[maybe_unused]] ELVA_CLONES static uint64_t not_below(const float* bounds, int64_t size, float threshold) {
  uint64_t hits = 0;
  if (size == kScan) {
    int any = 0;
    for (int64_t i = 0; i < kScan; ++i) any |= !(bounds[i] <= threshold);
    if (!any) return 0;
  }
  for (int64_t i = 0; i < size; ++i) hits |= static_cast<uint64_t>(!(bounds[i] <= threshold)) << i;
  return hits;
}

struct Bound {
  float residual, norm;  // of the query
  const float *key_norm, *key_residual;
};

// The same for rounded scores, raised by the most that rounding may have taken from them.
[[maybe_unused]] ELVA_CLONES static uint64_t possibly_above(const uint16_t* scores, int64_t size, float threshold, Bound bound) {
  float highest[kScan];
  for (int64_t i = 0; i < size; ++i) {
    const float score = from_bfloat16(scores[i]);
    highest[i] = score + std::fabs(score) * kRoundedScore + bound.residual * bound.key_norm[i] +
                 bound.norm * bound.key_residual[i] + kVanished;
  }
  return not_below(highest, size, threshold);
}

}  // namespace elva
