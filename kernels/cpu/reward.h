// From the similarities of one (query, rollout) to its rewards, the derivatives of the rewards in them, and from the
// rewards of a query's rollouts to their advantages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace elva {

struct Options {
  double delta, gamma;
  bool normalize_gamma;
  double alpha, epsilon, log_base;
  bool clamp_negative_weight;
};

struct Reward {
  int64_t rank;          // of the positive, from 1
  double margin, ranking;
  int64_t hardest;       // candidate index of the first hardest negative while the margin is active, else 0

  // dR_margin/ds of one candidate.
  double margin_weight(int64_t candidate) const {
    if (hardest == 0) return 0;
    return candidate == 0 ? 1 : candidate == hardest ? -1 : 0;
  }
};

// `similarities` holds the positive and then `count` negatives; `used` (may be null) one flag per negative, `step`
// apart. Writes dR_rank/ds to `weights` [1 + count], 0 where masked. Scalars are double in every precision: they
// cost nothing beside the dot products.
template <typename A>
Reward reward(const A* similarities, const bool* used, int64_t step, int64_t count, const Options& options,
              double* weights, std::vector<int64_t>& order) {
  const double positive = similarities[0], scale = 1 / std::log(options.log_base);
  order.clear();
  for (int64_t n = 0; n < count; ++n) {
    weights[1 + n] = 0;
    if (!used || used[n * step]) order.push_back(1 + n);
  }
  // Descending, NaN first as in torch.argsort: without a place for NaN this would be no strict weak ordering.
  std::stable_sort(order.begin(), order.end(), [similarities](int64_t a, int64_t b) {
    const A x = similarities[a], y = similarities[b];
    return x > y || (std::isnan(x) && !std::isnan(y));
  });

  Reward result{1, 0, 0, 0};
  double norm = 0;
  for (size_t place = 0; place < order.size(); ++place) {
    result.rank += similarities[order[place]] >= similarities[0];
    norm += std::max(std::log(place + 2.0) * scale - 1, 0.0);
  }
  double gamma = options.gamma;
  if (options.normalize_gamma) gamma = norm > 0 ? gamma / norm : 0;

  weights[0] = 1 / (1 + std::log(static_cast<double>(result.rank)) * scale);
  result.ranking = weights[0] * positive;
  for (size_t place = 0; place < order.size(); ++place) {
    const A similarity = similarities[order[place]];
    const double rank = static_cast<double>(place) + 1 + (similarities[0] > similarity);
    double weight = std::log(rank) * scale - 1;
    if (options.clamp_negative_weight) weight = std::max(weight, 0.0);
    weights[order[place]] = -gamma * weight;
    result.ranking -= gamma * weight * similarity;
  }
  if (!order.empty()) {
    const double slack = positive - static_cast<double>(similarities[order[0]]) - options.delta;
    result.margin = std::isnan(slack) ? slack : std::max(slack, 0.0);
    if (slack > 0) result.hardest = order[0];
  }
  return result;
}

// out[g] = (R_g - mean) / (std + 1e-4), or R_g - mean where not `scaled`. Equal rewards give exactly 0; NaN, which
// differs from itself, stays.
template <typename A>
void advantage(const A* rewards, int64_t rollouts, bool scaled, A* out) {
  double sum = 0, squares = 0;
  bool equal = true;
  for (int64_t g = 0; g < rollouts; ++g) {
    sum += rewards[g];
    equal = equal && rewards[g] == rewards[0];
  }
  const double mean = sum / rollouts;
  for (int64_t g = 0; g < rollouts; ++g) squares += (rewards[g] - mean) * (rewards[g] - mean);
  const double scale = scaled ? std::sqrt(squares / std::max<int64_t>(1, rollouts - 1)) + 1e-4 : 1;
  for (int64_t g = 0; g < rollouts; ++g) out[g] = equal ? A(0) : static_cast<A>((rewards[g] - mean) / scale);
}

}  // namespace elva
