// The passes of elva::infonce over a block of scores, between its matrix products. Semantics: elva/ops/infonce_blocks.py.
//
// A row is scaled, cut and reduced while it lies in the first-level cache: one trip to memory where PyTorch makes six.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "exponential.h"
#include "tensors.h"
#include "vector.h"

namespace elva {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kColumns = 64;  // of a block, reduced together: 256 bytes of each row

template <typename A>
constexpr A kNone = -std::numeric_limits<A>::infinity();

// The keys that are no negatives of one row.
struct Cut {
  const int64_t* labels;
  int64_t num_labels;
  const bool* mask;         // or null
  const int32_t* excluded;  // codes; null without ids
  int64_t num_excluded;
  const int32_t* codes;  // of every key
};

// Products become scores, -inf where the key is no negative. The labels' scores go to `positive` unless it is null.
template <typename A>
ELVA_INLINE void finish_body(A* __restrict row, int64_t count, A scale, const A* __restrict key_scales, const Cut& cut,
                             A* __restrict positive) {
  for (int64_t m = 0; m < count; ++m) row[m] = row[m] * scale * key_scales[m];
  for (int64_t p = 0; positive && p < cut.num_labels; ++p)
    positive[p] = cut.labels[p] < 0 ? -kNone<A> : row[cut.labels[p]];
  if (cut.mask)
    for (int64_t m = 0; m < count; ++m) row[m] = cut.mask[m] ? row[m] : kNone<A>;
  for (int64_t e = 0; e < cut.num_excluded; ++e) {
    const int32_t code = cut.excluded[e];
    if (code < 0) continue;
    for (int64_t m = 0; m < count; ++m) row[m] = cut.codes[m] == code ? kNone<A> : row[m];
  }
  for (int64_t p = 0; p < cut.num_labels; ++p)
    if (cut.labels[p] >= 0) row[cut.labels[p]] = kNone<A>;
}

template <typename A>
ELVA_INLINE A reduce_body(A* row, int64_t count, A scale, const A* key_scales, const Cut& cut, A* positive) {
  finish_body(row, count, scale, key_scales, cut, positive);
  const A highest = maximum_body(row, count);
  return std::isfinite(highest) ? highest + std::log(exponential_sum_body(row, count, highest)) : highest;
}

// Brings the maximum, and the sum of exp(score - maximum), of up to 64 columns up to date with `rows` more scores.
template <typename A>
ELVA_INLINE void advance_body(const A* scores, int64_t rows, int64_t stride, int64_t width, A* highest, A* total) {
  A best[kColumns], base[kColumns], sum[kColumns];
  for (int64_t k = 0; k < width; ++k) best[k] = highest[k];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < width; ++k) best[k] = scores[r * stride + k] > best[k] ? scores[r * stride + k] : best[k];
  for (int64_t k = 0; k < width; ++k) {
    base[k] = best[k] == kNone<A> ? A(0) : best[k];  // -inf - -inf would be NaN
    sum[k] = total[k] * exponential(highest[k] - base[k]);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < width; ++k) sum[k] += exponential(scores[r * stride + k] - base[k]);
  for (int64_t k = 0; k < width; ++k) highest[k] = best[k], total[k] = sum[k];
}

template <typename A>
struct Weights {
  A row_logsumexp, row;             // of the row
  const A *column_logsumexps, *columns;  // of every key, or null
};

// out = gradient of every score under its row's softmax.
template <typename A>
ELVA_INLINE void weigh_row(const A* __restrict row, A* __restrict out, int64_t count, A logsumexp, A weight) {
  for (int64_t m = 0; m < count; ++m) out[m] = weight * exponential(row[m] - logsumexp);
}

// out += gradient of every score under its column's softmax.
template <typename A>
ELVA_INLINE void weigh_columns(const A* __restrict row, A* __restrict out, int64_t count, const A* __restrict logsumexps,
                               const A* __restrict weights) {
  for (int64_t m = 0; m < count; ++m) out[m] += weights[m] * exponential(row[m] - logsumexps[m]);
}

// Gradients of scores become gradients of products; returns the sum of gradient * score.
template <typename A>
ELVA_INLINE A unscale(const A* __restrict row, A* __restrict out, int64_t count, A scale, const A* __restrict key_scales) {
  constexpr int64_t lanes = 16;
  A along[lanes] = {};
  int64_t m = 0;
  for (; m + lanes <= count; m += lanes) {
    for (int64_t k = 0; k < lanes; ++k) {
      along[k] += out[m + k] * (row[m + k] == kNone<A> ? A(0) : row[m + k]);
      out[m + k] *= scale * key_scales[m + k];
    }
  }
  for (; m < count; ++m) {
    along[0] += out[m] * (row[m] == kNone<A> ? A(0) : row[m]);
    out[m] *= scale * key_scales[m];
  }
  A total = 0;
  for (A value : along) total += value;
  return total;
}

// out = gradient of every product; returns the sum of gradient * score over the negatives.
template <typename A>
ELVA_INLINE A weigh_body(const A* row, A* out, int64_t count, A scale, const A* key_scales, const Weights<A>& weights) {
  constexpr int64_t piece = 1024;  // a few kilobytes go through the three steps together
  A along = 0;
  for (int64_t first = 0; first < count; first += piece) {
    const int64_t width = std::min(piece, count - first);
    weigh_row(row + first, out + first, width, weights.row_logsumexp, weights.row);
    if (weights.columns)
      weigh_columns(row + first, out + first, width, weights.column_logsumexps + first, weights.columns + first);
    along += unscale(row + first, out + first, width, scale, key_scales + first);
  }
  return along;
}

ELVA_CLONES void finish(float* row, int64_t count, float scale, const float* key_scales, const Cut& cut) {
  finish_body<float>(row, count, scale, key_scales, cut, nullptr);
}
void finish(double* row, int64_t count, double scale, const double* key_scales, const Cut& cut) {
  finish_body<double>(row, count, scale, key_scales, cut, nullptr);
}
ELVA_CLONES float reduce(float* row, int64_t count, float scale, const float* keys, const Cut& cut, float* positive) {
  return reduce_body(row, count, scale, keys, cut, positive);
}
double reduce(double* row, int64_t count, double scale, const double* keys, const Cut& cut, double* positive) {
  return reduce_body(row, count, scale, keys, cut, positive);
}
ELVA_CLONES void advance(const float* scores, int64_t rows, int64_t stride, int64_t width, float* highest, float* total) {
  advance_body(scores, rows, stride, width, highest, total);
}
void advance(const double* scores, int64_t rows, int64_t stride, int64_t width, double* highest, double* total) {
  advance_body(scores, rows, stride, width, highest, total);
}
ELVA_CLONES float weigh(const float* row, float* out, int64_t count, float scale, const float* key_scales,
                        const Weights<float>& weights) {
  return weigh_body(row, out, count, scale, key_scales, weights);
}
double weigh(const double* row, double* out, int64_t count, double scale, const double* key_scales,
             const Weights<double>& weights) {
  return weigh_body(row, out, count, scale, key_scales, weights);
}

void require(const Tensor& tensor, std::initializer_list<int64_t> size, ScalarType type) {
  bool fits = tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == type &&
              tensor.dim() == static_cast<int64_t>(size.size());
  int64_t dimension = 0;
  for (int64_t wanted : size) fits = fits && tensor.size(dimension++) == wanted;
  STD_TORCH_CHECK(fits, "infonce: a contiguous CPU tensor of another shape or dtype was expected");
}

template <typename A>
A* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<A*>(tensor->mutable_data_ptr()) : nullptr;
}

// The cuts of a block, one row at a time.
struct Cuts {
  const int64_t* labels;
  const bool* mask;
  const int32_t *excluded, *codes;
  int64_t num_labels, num_excluded, count;

  Cuts(const Tensor& label, const std::optional<Tensor>& flags, const std::optional<Tensor>& ids,
       const std::optional<Tensor>& key_codes, int64_t rows, int64_t keys)
      : labels(label.const_data_ptr<int64_t>()),
        mask(data_or_null<bool>(flags)),
        excluded(data_or_null<int32_t>(ids)),
        codes(data_or_null<int32_t>(key_codes)),
        num_labels(label.size(1)),
        num_excluded(ids ? ids->size(1) : 0),
        count(keys) {
    require(label, {rows, num_labels}, ScalarType::Long);
    if (flags) require(*flags, {rows, keys}, ScalarType::Bool);
    STD_TORCH_CHECK(ids.has_value() == key_codes.has_value(), "infonce: excluded and key_codes go together");
    if (ids) require(*ids, {rows, num_excluded}, ScalarType::Int), require(*key_codes, {keys}, ScalarType::Int);
    for (int64_t i = 0; i < rows * num_labels; ++i)
      STD_TORCH_CHECK(labels[i] >= -1 && labels[i] < keys, "infonce: a label is out of range");
  }
  Cut operator[](int64_t row) const {
    return {labels + row * num_labels, num_labels, mask ? mask + row * count : nullptr,
            excluded ? excluded + row * num_excluded : nullptr, num_excluded, codes};
  }
};

void infonce_reduce_(Tensor scores, const Tensor& query_scales, const Tensor& key_scales, const Tensor& labels,
                     const std::optional<Tensor>& mask, const std::optional<Tensor>& excluded,
                     const std::optional<Tensor>& key_codes, Tensor row_logsumexp, Tensor positive,
                     std::optional<Tensor> highest, std::optional<Tensor> total) {
  const int64_t rows = scores.size(0), count = scores.size(1);
  const ScalarType type = scores.scalar_type();
  require(scores, {rows, count}, type), require(row_logsumexp, {rows}, type);
  require(query_scales, {rows}, type), require(key_scales, {count}, type);
  require(positive, {rows, labels.size(1)}, type);
  STD_TORCH_CHECK(highest.has_value() == total.has_value(), "infonce: highest and total go together");
  if (highest) require(*highest, {count}, type), require(*total, {count}, type);
  const Cuts cuts(labels, mask, excluded, key_codes, rows, count);
  if (rows == 0 || count == 0) return;
  with_type(scores, [&]<typename A>(A) {
    A *data = scores.mutable_data_ptr<A>(), *sums = row_logsumexp.mutable_data_ptr<A>();
    A* positives = positive.mutable_data_ptr<A>();
    const A *along_rows = query_scales.const_data_ptr<A>(), *along_keys = key_scales.const_data_ptr<A>();
    torch::stable::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        sums[r] = reduce(data + r * count, count, along_rows[r], along_keys, cuts[r], positives + r * cuts.num_labels);
    });
    if (!highest) return;
    A *best = highest->mutable_data_ptr<A>(), *added = total->mutable_data_ptr<A>();
    torch::stable::parallel_for(0, (count + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * kColumns; first < std::min(end * kColumns, count); first += kColumns)
        advance(data + first, rows, count, std::min(kColumns, count - first), best + first, added + first);
    });
  });
}

void infonce_weigh_(Tensor scores, Tensor out, bool raw, const Tensor& query_scales, const Tensor& key_scales,
                    const Tensor& labels, const std::optional<Tensor>& mask, const std::optional<Tensor>& excluded,
                    const std::optional<Tensor>& key_codes, const Tensor& row_logsumexp, const Tensor& row_weight,
                    const std::optional<Tensor>& column_logsumexp, const std::optional<Tensor>& column_weight,
                    const Tensor& positive_weight, Tensor along) {
  const int64_t rows = scores.size(0), count = scores.size(1);
  const ScalarType type = scores.scalar_type();
  require(scores, {rows, count}, type), require(out, {rows, count}, type), require(along, {rows}, type);
  require(query_scales, {rows}, type), require(key_scales, {count}, type);
  require(row_logsumexp, {rows}, type), require(row_weight, {rows}, type);
  require(positive_weight, {rows, labels.size(1)}, type);
  STD_TORCH_CHECK(column_logsumexp.has_value() == column_weight.has_value(), "infonce: columns go together");
  if (column_weight) require(*column_weight, {count}, type), require(*column_logsumexp, {count}, type);
  const Cuts cuts(labels, mask, excluded, key_codes, rows, count);
  with_type(scores, [&]<typename A>(A) {
    A *data = scores.mutable_data_ptr<A>(), *grads = out.mutable_data_ptr<A>(), *sums = along.mutable_data_ptr<A>();
    const A *along_rows = query_scales.const_data_ptr<A>(), *along_keys = key_scales.const_data_ptr<A>();
    const A *row_sums = row_logsumexp.const_data_ptr<A>(), *weights = row_weight.const_data_ptr<A>();
    const A *column_sums = data_or_null<A>(column_logsumexp), *column_weights = data_or_null<A>(column_weight);
    const A* pulls = positive_weight.const_data_ptr<A>();
    torch::stable::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        A *row = data + r * count, *grad = grads + r * count;
        const Cut cut = cuts[r];
        if (raw) finish(row, count, along_rows[r], along_keys, cut);
        sums[r] = weigh(row, grad, count, along_rows[r], along_keys, {row_sums[r], weights[r], column_sums, column_weights});
        for (int64_t p = 0; p < cut.num_labels; ++p) {
          const int64_t m = cut.labels[p];
          if (m >= 0) grad[m] += pulls[r * cut.num_labels + p] * along_rows[r] * along_keys[m];
        }
      }
    });
  });
}

}  // namespace
}  // namespace elva

STABLE_TORCH_LIBRARY_IMPL(elva, CPU, m) {
  m.impl("infonce_reduce_", TORCH_BOX(&elva::infonce_reduce_));
  m.impl("infonce_weigh_", TORCH_BOX(&elva::infonce_weigh_));
}
