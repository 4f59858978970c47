// elva::similarity_topk_ on CPUs. Semantics: elva/ops/similarity_topk.py.
//
// Keys come in tiles whose scores stay in the cache. A score costs one comparison with its row's threshold, the k-th
// best so far; the few that pass go to a short list. With `screen` the tile's product is in bfloat16, several times
// as fast where the processor multiplies it, and the comparison leaves room for everything that rounding may hide
// (screen.h). Whatever passes is scored again in float32, so that the result is that of float32.
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
#include <vector>

#include "gemm.h"
#include "norms.h"
#include "screen.h"
#include "tensors.h"
#include "vector.h"

namespace elva {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTile = 2048;    // keys per product
constexpr int64_t kQueries = 1024;  // queries per product
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Entry {
  float score;
  int64_t id;
  bool operator<(const Entry& other) const { return score != other.score ? score > other.score : id < other.id; }
};

// The best of one query so far. `threshold` is the k-th best at the last pruning.
struct Shortlist {
  std::vector<Entry> entries;
  float threshold = -kInfinity;

  void add(Entry entry, int64_t k) {
    entries.push_back(entry);
    if (static_cast<int64_t>(entries.size()) >= 2 * k + 16) prune(k);
  }
  void prune(int64_t k) {
    if (static_cast<int64_t>(entries.size()) < k) return;
    std::nth_element(entries.begin(), entries.begin() + (k - 1), entries.end());
    entries.resize(k);
    threshold = entries[k - 1].score;
  }
};

// Rows in float32, and for a screen also in bfloat16 with the norms that bound the rounding.
struct Rows {
  Tensor values;
  int64_t dim;
  const float* data;
  std::optional<Tensor> rounded;
  std::vector<float> norm, residual;  // |x| and |x - x'|, both from above; empty without a screen

  explicit Rows(const Tensor& dense) : values(dense), dim(dense.size(1)), data(dense.const_data_ptr<float>()) {}
  const float* row(int64_t index) const { return data + index * dim; }
  const Tensor& operand() const { return rounded ? *rounded : values; }
};

template <typename T>
void widen_rows(const T* source, int64_t stride, int64_t rows, int64_t dim, bool normalise, float* out) {
  torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* to = out + row * dim;
      const T* from = source + row * stride;
      for (int64_t i = 0; i < dim; ++i) to[i] = static_cast<float>(from[i]);
      if (!normalise) continue;
      const float* place = to;
      const float inverse = length_of(place, to, dim).inverse;
      for (int64_t i = 0; i < dim; ++i) to[i] *= inverse;
    }
  });
}

// Fills what a screen needs, with `buffer` for the rounded rows.
void round_rows(Rows& rows, const Tensor& buffer) {
  const int64_t count = rows.values.size(0), dim = rows.dim;
  rows.rounded = slice(buffer, 0, count);
  rows.norm.resize(count);
  rows.residual.resize(count);
  uint16_t* rounded = static_cast<uint16_t*>(rows.rounded->mutable_data_ptr());
  torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* values = rows.row(row);
      // A hundredth more than |x| is also above |x'|. Sums of D products in float32 lose at most D units of 2^-24.
      const float squared = dot(values, values, dim);
      Norms norms{std::sqrt(squared), std::sqrt(round_row(values, rounded + row * dim, dim))};
      if (!(squared >= 0x1p-40f && squared <= 0x1p80f)) norms = exact_norms(values, rounded + row * dim, dim);
      rows.norm[row] = 1.01f * norms.row;
      const float lost = 1.01f * norms.lost + rows.norm[row] * static_cast<float>(dim) * 0x1p-24f;
      rows.residual[row] = std::isnan(lost) ? kInfinity : lost;  // infinities lose "infinity - infinity"
    }
  });
}

// Row by row access to a tensor of any supported dtype, as float32 tiles.
class Source {
 public:
  Source(const Tensor& tensor, bool normalise)
      : tensor_(tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor)),
        dim_(tensor.size(1)), normalise_(normalise) {}

  // Rows [first, first + count) as a dense float32 tensor: the source's own memory where it is that already.
  Tensor tile(int64_t first, int64_t count, const Tensor& buffer) const {
    if (!normalise_ && tensor_.scalar_type() == ScalarType::Float && tensor_.is_contiguous())
      return slice(tensor_, first, count);
    Tensor out = slice(buffer, 0, count);
    float* to = out.mutable_data_ptr<float>();
    const int64_t stride = tensor_.stride(0);
    switch (tensor_.scalar_type()) {
      case ScalarType::Float: copy(tensor_.const_data_ptr<float>(), stride, first, count, to); break;
      case ScalarType::BFloat16: copy(tensor_.const_data_ptr<BFloat16>(), stride, first, count, to); break;
      case ScalarType::Half:
        copy(tensor_.const_data_ptr<torch::headeronly::Half>(), stride, first, count, to);
        break;
      default: STD_TORCH_CHECK(false, "query and keys must be float32, bfloat16 or float16");
    }
    return out;
  }

 private:
  template <typename T>
  void copy(const T* data, int64_t stride, int64_t first, int64_t count, float* to) const {
    widen_rows(data + first * stride, stride, count, dim_, normalise_, to);
  }
  Tensor tensor_;
  int64_t dim_;
  bool normalise_;
};

struct Limits {
  const float* ceiling;    // [Q] or null: scores above it do not count
  const int64_t* exclude;  // [Q, width], each row ascending; null without
  int64_t width;

  bool excluded(int64_t query, int64_t id) const {
    return exclude && std::binary_search(exclude + query * width, exclude + (query + 1) * width, id);
  }
};

// Compares the scores of one query with one tile of keys.
template <typename Hits, typename Score>
void scan_row(int64_t query, int64_t tile, int64_t first_id, int64_t k, const Limits& limits, Shortlist& best,
              const Hits& hits, const Score& score) {
  for (int64_t start = 0; start < tile; start += kScan) {
    uint64_t found = hits(start, std::min(kScan, tile - start), best.threshold);
    for (; found; found &= found - 1) {
      const int64_t column = start + std::countr_zero(found), id = first_id + column;
      if (limits.excluded(query, id)) continue;
      const float value = score(column);
      if (value > best.threshold && !(limits.ceiling && value > limits.ceiling[query])) best.add({value, id}, k);
    }
  }
}

// Scores of queries [first, first + count) with a tile of keys, compared with the queries' shortlists.
void scan_tile(const Rows& queries, const Rows& keys, const Tensor& scores, int64_t first, int64_t first_id, int64_t k,
               const Limits& limits, std::vector<Shortlist>& best) {
  const int64_t count = scores.size(0), width = scores.size(1), dim = queries.dim;
  multiply_transposed(slice(queries.operand(), first, count), keys.operand(), scores);
  const void* data = scores.const_data_ptr();
  torch::stable::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t q = first + begin; q < first + end; ++q) {
      if (queries.rounded) {
        const uint16_t* line = static_cast<const uint16_t*>(data) + (q - first) * width;
        const auto hits = [&](int64_t at, int64_t size, float threshold) {
          const Bound bound{queries.residual[q], queries.norm[q], keys.norm.data() + at, keys.residual.data() + at};
          return possibly_above(line + at, size, threshold, bound);
        };
        const auto score = [&](int64_t column) { return dot(queries.row(q), keys.row(column), dim); };
        scan_row(q, width, first_id, k, limits, best[q], hits, score);
      } else {
        const float* line = static_cast<const float*>(data) + (q - first) * width;
        const auto hits = [&](int64_t at, int64_t size, float threshold) { return above(line + at, size, threshold); };
        scan_row(q, width, first_id, k, limits, best[q], hits, [&](int64_t column) { return line[column]; });
      }
    }
  });
}

// The shortlists as the caller's tensors hold them: sorted, padded with (-inf, -1).
std::vector<Shortlist> read(const Tensor& values, const Tensor& indices) {
  const int64_t k = values.size(1);
  const float* scores = values.const_data_ptr<float>();
  const int64_t* ids = indices.const_data_ptr<int64_t>();
  std::vector<Shortlist> best(values.size(0));
  for (int64_t row = 0; row < values.size(0); ++row) {
    best[row].entries.reserve(2 * k + 16);
    for (int64_t i = row * k; i < (row + 1) * k && ids[i] >= 0; ++i) best[row].entries.push_back({scores[i], ids[i]});
    best[row].prune(k);
  }
  return best;
}

void write(std::vector<Shortlist>& best, Tensor values, Tensor indices) {
  const int64_t k = values.size(1);
  float* scores = values.mutable_data_ptr<float>();
  int64_t* ids = indices.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, values.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      best[row].prune(k);
      std::vector<Entry>& entries = best[row].entries;
      std::sort(entries.begin(), entries.end());
      for (int64_t i = 0; i < k; ++i) {
        const bool there = i < static_cast<int64_t>(entries.size());
        scores[row * k + i] = there ? entries[i].score : -kInfinity;
        ids[row * k + i] = there ? entries[i].id : -1;
      }
    }
  });
}

void check(const Tensor& query, const Tensor& keys, const std::optional<Tensor>& ceiling,
           const std::optional<Tensor>& exclude, const Tensor& values, const Tensor& indices) {
  const auto fits = [&](const Tensor& tensor, int64_t dims, ScalarType type) {
    return tensor.is_cpu() && tensor.is_contiguous() && tensor.dim() == dims && tensor.size(0) == query.size(0) &&
           tensor.scalar_type() == type;
  };
  STD_TORCH_CHECK(query.dim() == 2 && keys.dim() == 2 && query.size(1) == keys.size(1) && query.is_cpu() &&
                  keys.is_cpu(), "expected query [Q, D] and keys [M, D]");
  STD_TORCH_CHECK(fits(values, 2, ScalarType::Float) && fits(indices, 2, ScalarType::Long) &&
                  values.size(1) == indices.size(1), "values and indices must be dense [Q, k] float32 and int64");
  STD_TORCH_CHECK(!ceiling || fits(*ceiling, 1, ScalarType::Float), "ceiling must be dense float32 [Q]");
  STD_TORCH_CHECK(!exclude || fits(*exclude, 2, ScalarType::Long), "exclude must be dense int64 [Q, E]");
}

void similarity_topk(const Tensor& query, const Tensor& keys, const std::optional<Tensor>& ceiling,
                     const std::optional<Tensor>& exclude, int64_t offset, bool cosine, bool screen, Tensor values,
                     Tensor indices) {
  check(query, keys, ceiling, exclude, values, indices);
  const int64_t count = query.size(0), pool = keys.size(0), dim = query.size(1), k = values.size(1);
  if (count == 0 || pool == 0 || k == 0) return;
  const Limits limits{ceiling ? ceiling->const_data_ptr<float>() : nullptr,
                      exclude ? exclude->const_data_ptr<int64_t>() : nullptr, exclude ? exclude->size(1) : 0};
  const int64_t tile = std::min(kTile, pool), block = std::min(kQueries, count);
  const Tensor query_buffer = empty(query, {count, dim}, ScalarType::Float);
  const Tensor key_buffer = empty(query, {tile, dim}, ScalarType::Float);
  const Tensor rounded_keys = empty(query, {screen ? tile : 0, dim}, ScalarType::BFloat16);
  const Tensor scores = empty(query, {block * tile}, screen ? ScalarType::BFloat16 : ScalarType::Float);
  Rows queries(Source(query, cosine).tile(0, count, query_buffer));
  if (screen) round_rows(queries, empty(query, {count, dim}, ScalarType::BFloat16));
  const Source source(keys, cosine);
  std::vector<Shortlist> best = read(values, indices);
  for (int64_t start = 0; start < pool; start += tile) {
    const int64_t width = std::min(tile, pool - start);
    Rows here(source.tile(start, width, key_buffer));
    if (screen) round_rows(here, rounded_keys);
    for (int64_t first = 0; first < count; first += block) {
      const std::vector<int64_t> size{std::min(block, count - first), width};
      const Tensor out = torch::stable::view(slice(scores, 0, size[0] * width), size);
      scan_tile(queries, here, out, first, offset + start, k, limits, best);
    }
  }
  write(best, values, indices);
}

}  // namespace
}  // namespace elva

STABLE_TORCH_LIBRARY_IMPL(elva, CPU, m) { m.impl("similarity_topk_", TORCH_BOX(&elva::similarity_topk)); }
