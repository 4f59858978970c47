from __future__ import annotations

import torch

from elva.models.cache import TensorCache


def test_the_cache_is_bounded_and_drops_the_oldest():
    cache = TensorCache(max_bytes=80)
    tensors = [torch.zeros(10) for _ in range(3)]  # 40 bytes each
    for key in range(2):
        cache.put(key, (tensors[key],))
    assert cache.get(0) is not None
    cache.put(2, (tensors[2],))
    assert cache.get(1) is None and cache.get(0) is not None and cache.get(2) is not None
    assert cache.bytes == 80


def test_putting_a_key_again_replaces_its_bytes():
    cache = TensorCache(max_bytes=100)
    cache.put("a", (torch.zeros(10), torch.zeros(10)))
    cache.put("a", (torch.ones(5),))
    assert cache.bytes == 20
    cache.clear()
    assert cache.bytes == 0 and cache.get("a") is None
