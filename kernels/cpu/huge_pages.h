// Fewer page faults in large fresh memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace elva {

// Asks for huge pages in a fresh tensor's memory, where Linux gives them on request. Beyond 32 MiB malloc takes every
// block anew from the system, and faulting it in 4 KiB at a time costs more than a pass over it; smaller ones are mostly
// memory that was touched before. It is only advice, so a refusal is no error.
inline void advise_huge_pages(const torch::stable::Tensor& fresh) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t malloc_keeps_at_most = 32 << 20;
  const uintptr_t bytes = fresh.numel() * fresh.element_size(), page = sysconf(_SC_PAGESIZE);
  if (bytes <= malloc_keeps_at_most) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t begin = (data + page - 1) / page * page, end = (data + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace elva
