// Matrix products by torch's own library (oneDNN, MKL or OpenBLAS), written into a tensor that is there already.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

namespace elva {

// out = a b. Fresh memory for every tile would cost more in page faults than a small product itself.
inline void multiply(const torch::stable::Tensor& a, const torch::stable::Tensor& b,
                     const torch::stable::Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  // Not STABLE_TORCH_ERROR_CODE_CHECK, which torch 2.10 and 2.11 do not have.
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<torch::stable::Tensor>(stack[0]);  // takes over the returned handle
}

// out = a b^T
inline void multiply_transposed(const torch::stable::Tensor& a, const torch::stable::Tensor& b,
                                const torch::stable::Tensor& out) {
  multiply(a, torch::stable::transpose(b, 0, 1), out);
}

}  // namespace elva
