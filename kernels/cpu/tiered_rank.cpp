// elva::tiered_rank and its backward on CPUs. Semantics: elva/ops/tiered_rank.py.
//
// A row is sorted once, as integers whose upper half orders the similarities and whose lower half is the index: that
// is several times as fast as sorting indices through a comparison of what they point to.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace elva {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTaskSize = 1 << 13;  // elements below which a task is not worth a thread

int64_t grain(int64_t columns) { return std::max<int64_t>(1, kTaskSize / std::max<int64_t>(1, columns)); }

// Smaller keys for larger values; NaN, whatever its sign, has the smallest, and -0 equals 0.
uint32_t descending(float value) {
  if (std::isnan(value)) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}
uint64_t descending(double value) {
  if (std::isnan(value)) return 0;
  const uint64_t bits = std::bit_cast<uint64_t>(value + 0.0);
  return bits >> 63 ? bits : ~bits & 0x7fffffffffffffffull;
}

template <typename A>
struct Place;
template <>
struct Place<float> {
  uint64_t packed;
  Place(float value, int64_t index) : packed(uint64_t{descending(value)} << 32 | static_cast<uint32_t>(index)) {}
  uint32_t key() const { return packed >> 32; }
  int64_t index() const { return packed & 0xffffffffu; }
  bool operator<(const Place& other) const { return packed < other.packed; }
};
template <>
struct Place<double> {
  uint64_t value_key;
  int64_t position;
  Place(double value, int64_t index) : value_key(descending(value)), position(index) {}
  uint64_t key() const { return value_key; }
  int64_t index() const { return position; }
  bool operator<(const Place& other) const { return value_key < other.value_key; }
};

struct Tiers {
  int64_t number;
  double ceiling;  // above it a negative is left out
};

template <typename A>
void rank_row(const A* between, const bool* mask, const A* edges, int64_t columns, const Tiers& tiers,
              std::vector<Place<A>>& order, int64_t* rank, int64_t* tier) {
  order.clear();
  for (int64_t n = 0; n < columns; ++n) {
    rank[n] = tier[n] = 0;
    if ((!mask || mask[n]) && !(static_cast<double>(between[n]) > tiers.ceiling)) order.emplace_back(between[n], n);
  }
  std::sort(order.begin(), order.end());
  const int64_t count = static_cast<int64_t>(order.size());
  int64_t first = 0, current = 1;
  for (int64_t place = 0; place < count; ++place) {
    const int64_t n = order[place].index();
    if (place == 0 || order[place].key() != order[place - 1].key()) {
      first = place;
      if (edges) {
        while (current < tiers.number && between[n] < edges[current - 1]) ++current;
      } else {
        current = 1 + first * tiers.number / count;
      }
    }
    rank[n] = first + 1;
    tier[n] = current;
  }
}

// One log-sum-exp per tier in two passes over the row: maxima, then sums.
template <typename A>
void reduce_row(const A* similarity, const int64_t* tier, int64_t columns, A scale, int64_t number, A* maxima, A* out) {
  std::fill(maxima, maxima + number, -std::numeric_limits<A>::infinity());
  std::fill(out, out + number, A(0));
  for (int64_t n = 0; n < columns; ++n) {
    if (tier[n]) maxima[tier[n] - 1] = std::max(maxima[tier[n] - 1], similarity[n] * scale);
  }
  for (int64_t t = 0; t < number; ++t) {
    if (std::isinf(maxima[t])) maxima[t] = 0;  // an empty tier, or one of -inf alone: nothing to subtract
  }
  for (int64_t n = 0; n < columns; ++n) {
    // std::max drops a NaN; the exponential keeps it.
    if (tier[n]) out[tier[n] - 1] += std::exp(similarity[n] * scale - maxima[tier[n] - 1]);
  }
  for (int64_t t = 0; t < number; ++t) out[t] = maxima[t] + std::log(out[t]);
}

void check_rows(const char* name, const Tensor& tensor, const Tensor& like, ScalarType type) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 2 && tensor.size(0) == like.size(0) &&
                      tensor.size(1) == like.size(1) && tensor.scalar_type() == type,
                  name, " does not have the shape, device or dtype that fits similarity [R, N]");
}

std::tuple<Tensor, Tensor, Tensor> tiered_rank(const Tensor& similarity_in, const Tensor& between_in,
                                               const std::optional<Tensor>& mask_in,
                                               const std::optional<Tensor>& edges_in, double temperature,
                                               int64_t num_tiers, double ceiling) {
  const ScalarType type = similarity_in.scalar_type();
  STD_TORCH_CHECK(similarity_in.dim() == 2 && num_tiers > 0, "expected similarity [R, N] and num_tiers >= 1");
  STD_TORCH_CHECK(similarity_in.size(1) <= std::numeric_limits<int32_t>::max(), "expected N < 2^31");
  check_rows("between", between_in, similarity_in, type);
  if (mask_in) check_rows("mask", *mask_in, similarity_in, ScalarType::Bool);
  if (edges_in)
    STD_TORCH_CHECK(edges_in->is_cpu() && edges_in->scalar_type() == type && edges_in->numel() == num_tiers - 1,
                    "edges must be num_tiers - 1 values in similarity's dtype");
  const Tensor similarity = torch::stable::contiguous(similarity_in), between = torch::stable::contiguous(between_in);
  std::optional<Tensor> mask, edges;
  if (mask_in) mask = torch::stable::contiguous(*mask_in);
  if (edges_in) edges = torch::stable::contiguous(*edges_in);
  const int64_t rows = similarity.size(0), columns = similarity.size(1);
  Tensor rank = torch::stable::new_empty(similarity, similarity.sizes(), ScalarType::Long);
  Tensor tier = torch::stable::new_empty(similarity, similarity.sizes(), ScalarType::Long);
  const std::vector<int64_t> size{rows, num_tiers};
  Tensor logsumexp = torch::stable::new_empty(similarity, size);
  with_type(similarity, [&]<typename A>(A) {
    const A *towards_query = similarity.const_data_ptr<A>(), *towards_positive = between.const_data_ptr<A>();
    const bool* flags = mask ? mask->const_data_ptr<bool>() : nullptr;
    const A* bounds = edges ? edges->const_data_ptr<A>() : nullptr;
    int64_t *ranks = rank.mutable_data_ptr<int64_t>(), *tiers = tier.mutable_data_ptr<int64_t>();
    A* sums = logsumexp.mutable_data_ptr<A>();
    const A scale = static_cast<A>(1 / temperature);
    torch::stable::parallel_for(0, rows, grain(columns), [&](int64_t begin, int64_t end) {
      std::vector<Place<A>> order;
      order.reserve(columns);
      std::vector<A> maxima(num_tiers);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * columns;
        rank_row(towards_positive + at, flags ? flags + at : nullptr, bounds, columns, {num_tiers, ceiling}, order,
                 ranks + at, tiers + at);
        reduce_row(towards_query + at, tiers + at, columns, scale, num_tiers, maxima.data(), sums + row * num_tiers);
      }
    });
  });
  return {logsumexp, rank, tier};
}

Tensor tiered_rank_backward(const Tensor& grad_in, const Tensor& similarity_in, const Tensor& tier_in,
                            const Tensor& logsumexp_in, double temperature) {
  const ScalarType type = similarity_in.scalar_type();
  STD_TORCH_CHECK(similarity_in.dim() == 2 && logsumexp_in.dim() == 2, "expected similarity [R, N], logsumexp [R, T]");
  check_rows("tier", tier_in, similarity_in, ScalarType::Long);
  check_rows("grad_logsumexp", grad_in, logsumexp_in, type);
  STD_TORCH_CHECK(logsumexp_in.size(0) == similarity_in.size(0) && logsumexp_in.scalar_type() == type,
                  "logsumexp does not fit similarity");
  const Tensor grad = torch::stable::contiguous(grad_in), similarity = torch::stable::contiguous(similarity_in);
  const Tensor tier = torch::stable::contiguous(tier_in), logsumexp = torch::stable::contiguous(logsumexp_in);
  const int64_t rows = similarity.size(0), columns = similarity.size(1), number = logsumexp.size(1);
  Tensor out = torch::stable::new_empty(similarity, similarity.sizes());
  with_type(similarity, [&]<typename A>(A) {
    const A *s = similarity.const_data_ptr<A>(), *lse = logsumexp.const_data_ptr<A>(), *g = grad.const_data_ptr<A>();
    const int64_t* tiers = tier.const_data_ptr<int64_t>();
    A* result = out.mutable_data_ptr<A>();
    const A scale = static_cast<A>(1 / temperature);
    torch::stable::parallel_for(0, rows, grain(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t n = row * columns; n < (row + 1) * columns; ++n) {
          const int64_t t = tiers[n];
          STD_TORCH_CHECK(t >= 0 && t <= number, "tier out of range");
          const int64_t cell = row * number + t - 1;
          result[n] = t ? g[cell] * scale * std::exp(s[n] * scale - lse[cell]) : A(0);
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace elva

STABLE_TORCH_LIBRARY_IMPL(elva, CPU, m) {
  m.impl("tiered_rank", TORCH_BOX(&elva::tiered_rank));
  m.impl("tiered_rank_backward", TORCH_BOX(&elva::tiered_rank_backward));
}
