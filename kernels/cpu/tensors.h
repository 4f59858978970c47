// What several kernels do with tensors: dispatch on the element type, allocate, cut rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <vector>

namespace elva {

// Calls f(T{}, A{}) with the element type of a tensor and its accumulation type.
template <typename F>
void with_types(const torch::stable::Tensor& tensor, const F& f) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(float{}, float{});
    case ScalarType::Double: return f(double{}, double{});
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16{}, float{});
    case ScalarType::Half: return f(torch::headeronly::Half{}, float{});
    default: STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

// Calls f(A{}) for a tensor in an accumulation type.
template <typename F>
void with_type(const torch::stable::Tensor& tensor, const F& f) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    default: STD_TORCH_CHECK(false, "expected float32 or float64");
  }
}

inline torch::stable::Tensor empty(const torch::stable::Tensor& like, const std::vector<int64_t>& size,
                                   torch::headeronly::ScalarType type) {
  return torch::stable::new_empty(like, size, type);
}

// Rows [first, first + count), sharing memory.
inline torch::stable::Tensor slice(torch::stable::Tensor tensor, int64_t first, int64_t count) {
  return torch::stable::narrow(tensor, 0, first, count);
}

}  // namespace elva
