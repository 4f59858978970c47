// elva::linear_logprob on CPUs. Semantics: elva/ops/linear_logprob.py.
//
// The vocabulary comes in tiles. Their logits exist in one buffer, in which one pass turns them into unnormalised
// probabilities under the running maximum; the product of those with the same rows of the head, summed over the
// tiles, is all that the gradient of a frozen head needs (flash attention with keys = values = head). Rows of the head
// that train come apart: their logits overwrite the tile's, and the second product leaves them out.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "exponential.h"
#include "gemm.h"
#include "tensors.h"
#include "vector.h"

namespace elva {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileElements = 1 << 21;  // logits in one tile
constexpr int64_t kLeastTile = 256;

// Rows [first, first + count) in the accumulation type: a view where they are that already.
template <typename T, typename A>
Tensor widened(const Tensor& rows, int64_t first, int64_t count, const Tensor& buffer) {
  if constexpr (std::is_same_v<T, A>) {
    return slice(rows, first, count);
  } else {
    const int64_t dim = rows.size(1);
    const T* from = rows.const_data_ptr<T>() + first * dim;
    A* to = buffer.mutable_data_ptr<A>();
    torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * dim; i < end * dim; ++i) to[i] = static_cast<A>(from[i]);
    });
    return slice(buffer, 0, count);
  }
}

// What is known of one token after some tiles.
template <typename A>
struct Running {
  A highest = -std::numeric_limits<A>::infinity();  // logit
  A total = 0, weighted = 0;                        // sums of p = exp(z - highest), and of p * (z - highest)
  A target = 0;                                     // the target's logit
  A fade = 0;                                       // what the last tile's maximum left of earlier sums
};

// Rows of the head that come apart.
template <typename A>
struct Given {
  const int64_t* rows;
  const A* values;  // [count, dim]
  const A* logits;  // [T, count]
  int64_t count, dim;

  // Calls f(column in the tile, logit) for those that lie in it.
  template <typename F>
  void each(int64_t token, int64_t first, int64_t width, const F& f) const {
    for (int64_t i = 0; i < count; ++i)
      if (rows[i] >= first && rows[i] < first + width) f(rows[i] - first, logits[token * count + i]);
  }

  // expected += sum of their p * values
  void add(int64_t token, A scale, A logsumexp, A* expected) const {
    for (int64_t i = 0; i < count; ++i) {
      const A p = std::exp(logits[token * count + i] * scale - logsumexp);
      for (int64_t j = 0; j < dim; ++j) expected[j] += p * values[i * dim + j];
    }
  }
};

// Logits become exp(z - highest), and the token's sums move to the new maximum.
template <typename A>
void advance(Running<A>& token, A* logits, int64_t width, A scale) {
  const A highest = std::max(token.highest, maximum(logits, width) * scale);
  const A fade = exponential(token.highest - highest);
  const Sums<A> sums = exponentials(logits, width, scale, highest);
  const A moved = token.total == 0 ? A(0) : token.weighted + token.total * (token.highest - highest);
  token = {highest, token.total * fade + sums.total, moved * fade + sums.weighted, token.target, fade};
}

// expected = expected * fade + product
template <typename A>
void accumulate(const std::vector<Running<A>>& tokens, const Tensor& product, const Tensor& expected) {
  const int64_t dim = expected.size(1);
  const A* from = product.const_data_ptr<A>();
  A* to = expected.mutable_data_ptr<A>();
  torch::stable::parallel_for(0, expected.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const A fade = tokens[t].fade;
      for (int64_t i = t * dim; i < (t + 1) * dim; ++i) to[i] = to[i] * fade + from[i];
    }
  });
}

template <typename T, typename A>
void sweep(const Tensor& rows, const Tensor& weight, const int64_t* targets, A scale, const Given<A>& given,
           std::vector<Running<A>>& tokens, const Tensor* expected) {
  const int64_t count = rows.size(0), dim = rows.size(1), vocabulary = weight.size(0);
  const ScalarType type = rows.scalar_type();
  const int64_t tile = std::min(vocabulary, std::max(kLeastTile, kTileElements / count));
  const bool narrow = !std::is_same_v<T, A>;
  const Tensor buffer = empty(rows, {narrow ? tile : 0, dim}, type), flat = empty(rows, {count * tile}, type);
  const Tensor product = empty(rows, {expected ? count : 0, dim}, type);
  for (int64_t first = 0; first < vocabulary; first += tile) {
    const std::vector<int64_t> size{count, std::min(tile, vocabulary - first)};
    const Tensor head = widened<T, A>(weight, first, size[1], buffer);
    const Tensor logits = torch::stable::view(slice(flat, 0, count * size[1]), size);
    multiply_transposed(rows, head, logits);
    A* data = logits.mutable_data_ptr<A>();
    torch::stable::parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        A* row = data + t * size[1];
        given.each(t, first, size[1], [&](int64_t column, A logit) { row[column] = logit; });
        const int64_t own = targets[t] - first;
        if (own >= 0 && own < size[1]) tokens[t].target = row[own] * scale;
        advance(tokens[t], row, size[1], scale);
        given.each(t, first, size[1], [&](int64_t column, A) { row[column] = 0; });
      }
    });
    if (!expected) continue;
    multiply(logits, head, product);
    accumulate(tokens, product, *expected);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_logprob(const Tensor& hidden_in, const Tensor& weight_in,
                                                          const Tensor& targets_in, double temperature,
                                                          bool with_expected, const std::optional<Tensor>& rows_in,
                                                          const std::optional<Tensor>& values_in) {
  STD_TORCH_CHECK(hidden_in.dim() == 2 && weight_in.dim() == 2 && hidden_in.size(1) == weight_in.size(1) &&
                      hidden_in.is_cpu() && weight_in.is_cpu() && hidden_in.scalar_type() == weight_in.scalar_type(),
                  "expected hidden [T, H] and weight [V, H] of one dtype");
  STD_TORCH_CHECK(targets_in.dim() == 1 && targets_in.is_cpu() && targets_in.size(0) == hidden_in.size(0) &&
                      targets_in.scalar_type() == ScalarType::Long, "targets must be int64 [T]");
  const Tensor hidden = torch::stable::contiguous(hidden_in), weight = torch::stable::contiguous(weight_in);
  const Tensor targets = torch::stable::contiguous(targets_in);
  const int64_t count = hidden.size(0), dim = hidden.size(1), vocabulary = weight.size(0);
  const int64_t* ids = targets.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < count; ++t)
    STD_TORCH_CHECK(ids[t] >= 0 && ids[t] < vocabulary, "targets must be rows of weight");
  const ScalarType type = hidden.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor logprob = empty(hidden, {count}, type), entropy = empty(hidden, {count}, type);
  Tensor logsumexp = empty(hidden, {count}, type), expected = empty(hidden, {with_expected ? count : 0, dim}, type);
  STD_TORCH_CHECK(rows_in.has_value() == values_in.has_value(), "trainable_rows and row_values come together");
  const Tensor given_rows = rows_in ? torch::stable::contiguous(*rows_in) : slice(targets, 0, 0);
  const Tensor given_values = values_in ? torch::stable::contiguous(*values_in) : slice(weight, 0, 0);
  const int64_t given_count = given_rows.size(0);
  STD_TORCH_CHECK(given_rows.dim() == 1 && given_rows.is_cpu() && given_rows.scalar_type() == ScalarType::Long &&
                      given_values.dim() == 2 && given_values.is_cpu() && given_values.size(0) == given_count &&
                      given_values.size(1) == dim && given_values.scalar_type() == hidden.scalar_type(),
                  "expected trainable_rows int64 [R] and row_values [R, H] in hidden's dtype");
  if (count == 0) return {logprob, entropy, logsumexp, expected};
  torch::stable::zero_(expected);
  with_types(hidden, [&]<typename T, typename A>(T, A) {
    std::vector<Running<A>> tokens(count);
    const A scale = static_cast<A>(1 / temperature);
    const bool narrow = !std::is_same_v<T, A>;
    const Tensor values = widened<T, A>(given_values, 0, given_count,
                                        empty(hidden, {narrow ? given_count : 0, dim}, type));
    const Tensor given_logits = empty(hidden, {count, given_count}, type);
    const Tensor rows = widened<T, A>(hidden, 0, count, empty(hidden, {narrow ? count : 0, dim}, type));
    if (given_count) multiply_transposed(rows, values, given_logits);
    const Given<A> given{given_rows.const_data_ptr<int64_t>(), values.const_data_ptr<A>(),
                         given_logits.const_data_ptr<A>(), given_count, dim};
    sweep<T, A>(rows, weight, ids, scale, given, tokens, with_expected ? &expected : nullptr);
    A *logprobs = logprob.mutable_data_ptr<A>(), *entropies = entropy.mutable_data_ptr<A>();
    A* sums = logsumexp.mutable_data_ptr<A>();
    A* means = with_expected ? expected.mutable_data_ptr<A>() : nullptr;
    for (int64_t t = 0; t < count; ++t) {
      const A log_total = std::log(tokens[t].total);
      sums[t] = tokens[t].highest + log_total;
      // by distances from the highest logit: their size, not the logits', bounds the rounding
      logprobs[t] = (tokens[t].target - tokens[t].highest) - log_total;
      entropies[t] = std::max(log_total - tokens[t].weighted / tokens[t].total, A(0));
      if (!means) continue;
      for (int64_t i = 0; i < dim; ++i) means[t * dim + i] /= tokens[t].total;
      given.add(t, scale, sums[t], means + t * dim);
    }
  });
  return {logprob, entropy, logsumexp, expected};
}

}  // namespace
}  // namespace elva

STABLE_TORCH_LIBRARY_IMPL(elva, CPU, m) { m.impl("linear_logprob", TORCH_BOX(&elva::linear_logprob)); }
