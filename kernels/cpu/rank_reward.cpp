// elva::rank_reward and its backward on CPUs. Semantics: elva/ops/rank_reward.py.
//
// Both passes read every candidate once: a row is widened to the accumulation type in the first-level cache, and all
// that is needed of it (norm, products with the rollouts that share it, gradients) is computed there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "huge_pages.h"
#include "norms.h"
#include "reward.h"
#include "tensors.h"
#include "vector.h"

namespace elva {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBlock = 64;         // candidates per task
constexpr int64_t kTaskSize = 1 << 15;  // multiply-adds below which a task is not worth a thread

int64_t grain(int64_t work) { return std::max<int64_t>(1, kTaskSize / std::max<int64_t>(1, work)); }

// Positives (count 1) or negatives: [B, groups, count, D], where `groups` is 1 or the number of rollouts G.
template <typename T>
struct Candidates {
  const T* data;
  int64_t stride_b, stride_g, stride_n, groups, count;
  int64_t first;  // their first column in the similarities
  T* grad;        // contiguous; backward only

  const T* row(int64_t b, int64_t g, int64_t n) const { return data + b * stride_b + g * stride_g + n * stride_n; }
};

// Which candidates of a (query, rollout) count. The positive always does.
struct Mask {
  const bool* data = nullptr;
  int64_t stride_b = 0, stride_g = 0, stride_n = 0;

  const bool* row(int64_t b, int64_t g) const { return data ? data + b * stride_b + g * stride_g : nullptr; }
  bool used(int64_t b, int64_t g, int64_t column) const {
    return !data || column == 0 || row(b, g)[(column - 1) * stride_n];
  }
};

// Queries [B, G, D] in the accumulation type, scaled where they need it, with their inverse norms and scales [B, G].
template <typename A>
struct Queries {
  int64_t batch, rollouts, dim;
  std::vector<A> values, inverse, scale;

  template <typename T>
  Queries(const T* data, int64_t stride_b, int64_t stride_g, int64_t batch, int64_t rollouts, int64_t dim)
      : batch(batch), rollouts(rollouts), dim(dim), values(batch * rollouts * dim), inverse(batch * rollouts),
        scale(batch * rollouts) {
    for (int64_t row = 0; row < batch * rollouts; ++row) {
      const T* source = data + row / rollouts * stride_b + row % rollouts * stride_g;
      A* copy = values.data() + row * dim;
      std::copy(source, source + dim, copy);
      const A* place = copy;
      const Length<A> length = length_of(place, copy, dim);
      inverse[row] = length.inverse, scale[row] = length.scale;
    }
  }
  const A* row(int64_t index) const { return values.data() + index * dim; }
};

template <typename T, typename A>
void similarities_of(const Candidates<T>& candidates, const Queries<A>& queries, const Mask& mask, A* out,
                     int64_t columns) {
  const int64_t sharers = candidates.groups == 0 ? 0 : queries.rollouts / candidates.groups;
  const int64_t rows = queries.batch * candidates.groups * candidates.count;
  torch::stable::parallel_for(0, rows, grain(queries.dim * (1 + sharers)), [&](int64_t begin, int64_t end) {
    std::vector<A> buffer(queries.dim);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index % candidates.count, group = index / candidates.count;
      const int64_t b = group / candidates.groups, g = group % candidates.groups, column = candidates.first + n;
      const A* row = nullptr;
      A inverse = 0;
      for (int64_t rollout = g; rollout < g + sharers; ++rollout) {
        const int64_t query = b * queries.rollouts + rollout;
        A& similarity = out[query * columns + column];
        similarity = 0;
        if (!mask.used(b, rollout, column)) continue;
        if (!row) {
          row = widen(candidates.row(b, g, n), buffer.data(), queries.dim);
          inverse = length_of(row, buffer.data(), queries.dim).inverse;
        }
        similarity = dot(queries.row(query), row, queries.dim) * queries.inverse[query] * inverse;
      }
    }
  });
}

// Gradients of the candidates, and their part of the queries' gradients: with w = dL/ds and unit vectors q', c',
// dL/dc = Σ_g w_g (q'_g − s_g c') / |c| and dL/dq = Σ_i w_i (c'_i − s_i q') / |q|; the second term of the latter
// is added by the caller. Each block of candidates sums into its own rows of `partial`, so that the result does not
// depend on the number of threads; returns them as [batch · groups, blocks, sharers, D].
template <typename T, typename A>
std::vector<A> candidate_gradients(const Candidates<T>& candidates, const Queries<A>& queries, const Mask& mask,
                                   const A* similarities, const A* weights, int64_t columns) {
  const int64_t dim = queries.dim, sharers = candidates.groups == 0 ? 0 : queries.rollouts / candidates.groups;
  const int64_t blocks = (candidates.count + kBlock - 1) / kBlock;
  const int64_t tasks = queries.batch * candidates.groups * blocks;
  std::vector<A> partial(tasks * sharers * dim);
  const int64_t work = std::min(kBlock, candidates.count) * dim * (1 + 2 * sharers);
  torch::stable::parallel_for(0, tasks, grain(work), [&](int64_t begin, int64_t end) {
    std::vector<A> buffer(dim), gradient(dim);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % blocks, group = task / blocks;
      const int64_t b = group / candidates.groups, g = group % candidates.groups;
      const int64_t last = std::min(candidates.count, (block + 1) * kBlock);
      for (int64_t n = block * kBlock; n < last; ++n) {
        const A* row = nullptr;
        A inverse = 0, scale = 1, pull = 0;
        std::fill(gradient.begin(), gradient.end(), A(0));
        for (int64_t k = 0; k < sharers; ++k) {
          const int64_t query = b * queries.rollouts + g + k, cell = query * columns + candidates.first + n;
          if (!mask.used(b, g + k, candidates.first + n)) continue;
          if (!row) {
            row = widen(candidates.row(b, g, n), buffer.data(), dim);
            const Length<A> length = length_of(row, buffer.data(), dim);
            inverse = length.inverse, scale = length.scale;
          }
          const A weight = weights[cell] * inverse;
          add_scaled(partial.data() + (task * sharers + k) * dim, weight * queries.inverse[query], row, dim);
          add_scaled(gradient.data(), weight * queries.inverse[query], queries.row(query), dim);
          pull += weight * inverse * similarities[cell];
        }
        if (row) add_scaled(gradient.data(), -pull, row, dim);
        if (scale != 1)
          for (A& value : gradient) value *= scale;
        narrow(gradient.data(), candidates.grad + (group * candidates.count + n) * dim, dim);
      }
    }
  });
  return partial;
}

template <typename A>
void add_partial(const std::vector<A>& partial, int64_t groups, int64_t count, const Queries<A>& queries, int64_t b,
                 int64_t rollout, A* gradient) {
  if (count == 0) return;
  const int64_t blocks = (count + kBlock - 1) / kBlock, sharers = queries.rollouts / groups;
  const int64_t group = b * groups + rollout / sharers, k = rollout % sharers;
  for (int64_t block = 0; block < blocks; ++block) {
    const A* part = partial.data() + ((group * blocks + block) * sharers + k) * queries.dim;
    add_scaled(gradient, A(1), part, queries.dim);
  }
}

// Rows must be dense; any other strides are followed as they are, so that expanded inputs are not copied.
Tensor dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// The operator's inputs, checked: Python checks them too, with better messages, but this is memory safety.
struct Inputs {
  Tensor query, positive, negatives;
  std::optional<Tensor> mask_tensor;
  int64_t batch, rollouts, dim, count;

  Inputs(const Tensor& q, const Tensor& p, const Tensor& n, const std::optional<Tensor>& m)
      : query(dense_rows(q)), positive(dense_rows(p)), negatives(dense_rows(n)), mask_tensor(m) {
    STD_TORCH_CHECK(q.dim() == 3 && p.dim() == 3 && n.dim() == 4, "expected query [B,G,D], positive [B,G,D], "
                    "negatives [B,G,N,D]");
    batch = q.size(0), rollouts = q.size(1), dim = q.size(2), count = n.size(2);
    check("positive", p, dim, 2);
    check("negatives", n, dim, 3);
    if (!m) return;
    STD_TORCH_CHECK(m->dim() == 3 && m->scalar_type() == ScalarType::Bool, "mask must be bool [B,G,N]");
    check_rows("mask", *m);
    STD_TORCH_CHECK(m->size(2) == count, "mask does not have one flag per negative");
  }

  void check_rows(const char* name, const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.size(0) == batch &&
                        (tensor.size(1) == rollouts || tensor.size(1) == 1),
                    name, " does not fit query in its first two dimensions or its device");
  }
  void check(const char* name, const Tensor& tensor, int64_t width, int64_t axis) const {
    check_rows(name, tensor);
    STD_TORCH_CHECK(tensor.size(axis) == width && tensor.scalar_type() == query.scalar_type(), name,
                    " does not have query's width and dtype");
  }
  Mask mask() const {
    if (!mask_tensor) return {};
    const Tensor& m = *mask_tensor;
    return {m.const_data_ptr<bool>(), m.stride(0), m.size(1) == 1 ? 0 : m.stride(1), m.stride(2)};
  }
  template <typename T, typename A>
  Queries<A> queries() const {
    return Queries<A>(query.const_data_ptr<T>(), query.stride(0), query.stride(1), batch, rollouts, dim);
  }
  template <typename T>
  Candidates<T> positives(T* grad = nullptr) const {
    return {positive.const_data_ptr<T>(), positive.stride(0), positive.stride(1), 0, positive.size(1), 1, 0, grad};
  }
  template <typename T>
  Candidates<T> others(T* grad = nullptr) const {
    const Tensor& n = negatives;
    return {n.const_data_ptr<T>(), n.stride(0), n.stride(1), n.stride(2), n.size(1), count, 1, grad};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rank_reward(
    const Tensor& query, const Tensor& positive, const Tensor& negatives, const std::optional<Tensor>& mask_tensor,
    double delta, double gamma, bool normalize_gamma, double alpha, double epsilon, double log_base,
    bool clamp_negative_weight, const std::optional<std::string>& scale_rewards) {
  const Inputs inputs(query, positive, negatives, mask_tensor);
  STD_TORCH_CHECK(!scale_rewards || *scale_rewards == "group" || *scale_rewards == "none",
                  "scale_rewards must be group, none or None");
  const Options options{delta, gamma, normalize_gamma, alpha, epsilon, log_base, clamp_negative_weight};
  const int64_t rows = inputs.batch * inputs.rollouts, columns = 1 + inputs.count;
  const ScalarType type = query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto empty = [&](std::vector<int64_t> size, ScalarType dtype) {
    return torch::stable::new_empty(query, size, dtype);
  };
  Tensor similarities = empty({inputs.batch, inputs.rollouts, columns}, type);
  Tensor rank = empty({inputs.batch, inputs.rollouts}, ScalarType::Long);
  Tensor margin = empty({inputs.batch, inputs.rollouts}, type);
  Tensor ranking = empty({inputs.batch, inputs.rollouts}, type);
  Tensor total = empty({inputs.batch, inputs.rollouts}, type);
  Tensor weights = empty({inputs.batch, inputs.rollouts, columns}, type);
  Tensor advantages = scale_rewards ? empty({inputs.batch, inputs.rollouts}, type) : empty({0}, type);
  with_types(query, [&]<typename T, typename A>(T, A) {
    const Mask mask = inputs.mask();
    const Queries<A> queries = inputs.queries<T, A>();
    A* out = similarities.mutable_data_ptr<A>();
    similarities_of(inputs.positives<T>(), queries, mask, out, columns);
    similarities_of(inputs.others<T>(), queries, mask, out, columns);
    int64_t* ranks = rank.mutable_data_ptr<int64_t>();
    A *margins = margin.mutable_data_ptr<A>(), *rankings = ranking.mutable_data_ptr<A>();
    A *totals = total.mutable_data_ptr<A>(), *on_similarities = weights.mutable_data_ptr<A>();
    torch::stable::parallel_for(0, rows, grain(16 * columns), [&](int64_t begin, int64_t end) {
      std::vector<double> ranking_weights(columns);
      std::vector<int64_t> order;
      for (int64_t row = begin; row < end; ++row) {
        const bool* used = mask.row(row / inputs.rollouts, row % inputs.rollouts);
        const Reward result =
            reward(out + row * columns, used, mask.stride_n, inputs.count, options, ranking_weights.data(), order);
        ranks[row] = result.rank;
        margins[row] = static_cast<A>(result.margin);
        rankings[row] = static_cast<A>(result.ranking);
        totals[row] = static_cast<A>(alpha * result.margin + epsilon * result.ranking);
        for (int64_t c = 0; c < columns; ++c) {
          const double weight = epsilon * ranking_weights[c] + alpha * result.margin_weight(c);
          on_similarities[row * columns + c] = static_cast<A>(weight);
        }
      }
    });
    if (!scale_rewards) return;
    for (int64_t row = 0; row < rows; row += inputs.rollouts)
      advantage(totals + row, inputs.rollouts, *scale_rewards == "group", advantages.mutable_data_ptr<A>() + row);
  });
  return {similarities, rank, margin, ranking, total, weights, advantages};
}

std::tuple<Tensor, Tensor, Tensor> rank_reward_backward(
    const Tensor& grad_similarities, const Tensor& grad_margin, const Tensor& grad_ranking, const Tensor& grad_total,
    const Tensor& query, const Tensor& positive, const Tensor& negatives, const std::optional<Tensor>& mask_tensor,
    const Tensor& similarities, double delta, double gamma, bool normalize_gamma, double alpha, double epsilon,
    double log_base, bool clamp_negative_weight) {
  const Inputs inputs(query, positive, negatives, mask_tensor);
  const Options options{delta, gamma, normalize_gamma, alpha, epsilon, log_base, clamp_negative_weight};
  const int64_t rows = inputs.batch * inputs.rollouts, columns = 1 + inputs.count, dim = inputs.dim;
  for (const Tensor* grad : {&grad_similarities, &similarities})
    STD_TORCH_CHECK(grad->numel() == rows * columns, "expected one similarity per (query, rollout, candidate)");
  for (const Tensor* grad : {&grad_margin, &grad_ranking, &grad_total})
    STD_TORCH_CHECK(grad->numel() == rows, "expected one gradient per (query, rollout)");
  const auto like = [](const Tensor& tensor) {
    const Tensor fresh = torch::stable::new_empty(tensor, tensor.sizes());
    advise_huge_pages(fresh);
    return fresh;
  };
  Tensor grad_query = like(query), grad_positive = like(positive), grad_negatives = like(negatives);
  const Tensor dense[] = {torch::stable::contiguous(grad_similarities), torch::stable::contiguous(grad_margin),
                          torch::stable::contiguous(grad_ranking), torch::stable::contiguous(grad_total),
                          torch::stable::contiguous(similarities)};
  with_types(query, [&]<typename T, typename A>(T, A) {
    const Mask mask = inputs.mask();
    const Queries<A> queries = inputs.queries<T, A>();
    const A *on_similarities = dense[0].const_data_ptr<A>(), *on_margin = dense[1].const_data_ptr<A>(),
            *on_ranking = dense[2].const_data_ptr<A>(), *on_total = dense[3].const_data_ptr<A>(),
            *values = dense[4].const_data_ptr<A>();
    std::vector<A> weights(rows * columns), pull(rows);
    torch::stable::parallel_for(0, rows, grain(16 * columns), [&](int64_t begin, int64_t end) {
      std::vector<double> ranking_weights(columns);
      std::vector<int64_t> order;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / inputs.rollouts, g = row % inputs.rollouts;
        const A* s = values + row * columns;
        const Reward result =
            reward(s, mask.row(b, g), mask.stride_n, inputs.count, options, ranking_weights.data(), order);
        const double margin = on_margin[row] + alpha * on_total[row];
        const double ranking = on_ranking[row] + epsilon * on_total[row];
        double sum = 0;
        for (int64_t c = 0; c < columns; ++c) {
          double weight = 0;
          if (mask.used(b, g, c)) weight = on_similarities[row * columns + c] + ranking * ranking_weights[c];
          weight += margin * result.margin_weight(c);
          weights[row * columns + c] = static_cast<A>(weight);
          sum += weight * s[c];
        }
        pull[row] = static_cast<A>(sum);
      }
    });
    const auto positives = inputs.positives<T>(grad_positive.mutable_data_ptr<T>());
    const auto others = inputs.others<T>(grad_negatives.mutable_data_ptr<T>());
    const auto from_positives = candidate_gradients(positives, queries, mask, values, weights.data(), columns);
    const auto from_others = candidate_gradients(others, queries, mask, values, weights.data(), columns);
    T* out = grad_query.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, rows, grain(4 * dim), [&](int64_t begin, int64_t end) {
      std::vector<A> gradient(dim);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / inputs.rollouts, g = row % inputs.rollouts;
        std::fill(gradient.begin(), gradient.end(), A(0));
        add_partial(from_positives, positives.groups, 1, queries, b, g, gradient.data());
        add_partial(from_others, others.groups, inputs.count, queries, b, g, gradient.data());
        add_scaled(gradient.data(), -pull[row] * queries.inverse[row] * queries.inverse[row], queries.row(row), dim);
        for (A& value : gradient) value *= queries.scale[row];
        narrow(gradient.data(), out + row * dim, dim);
      }
    });
  });
  return {grad_query, grad_positive, grad_negatives};
}

}  // namespace
}  // namespace elva

STABLE_TORCH_LIBRARY_IMPL(elva, CPU, m) {
  m.impl("rank_reward", TORCH_BOX(&elva::rank_reward));
  m.impl("rank_reward_backward", TORCH_BOX(&elva::rank_reward_backward));
}
