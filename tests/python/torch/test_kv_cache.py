"""Caches of keys: pages, lengths in tensors, appending; on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import pytest
import tessera
import tessera.torch
import torch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]
BATCH, CAPACITY, HEADS_Q, HEADS_KV, DIM = 3, 96, 4, 2, 64


class Cache:
    """Contiguous keys and values, and the same in a pool of pages in random order."""

    def __init__(self, device: str, page_size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

        self.q = normal(BATCH, 2, HEADS_Q, DIM)
        self.k, self.v = (normal(BATCH, CAPACITY, HEADS_KV, DIM) for _ in range(2))
        pages = CAPACITY // page_size
        order = torch.randperm(BATCH * pages + 2, generator=generator)[: BATCH * pages]
        self.table = order.reshape(BATCH, pages).to(device, torch.int32)
        self.k_pool, self.v_pool = (
            torch.full((BATCH * pages + 2, page_size, HEADS_KV, DIM), torch.nan, device=device).bfloat16()
            for _ in range(2)
        )
        for pool, whole in ((self.k_pool, self.k), (self.v_pool, self.v)):
            pool[order] = whole.reshape(BATCH * pages, page_size, HEADS_KV, DIM)
        self.lengths = torch.tensor([96, 0, 37], device=device, dtype=torch.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page_size", [16, 32])
def test_pages_are_the_contiguous_cache(device: str, page_size: int) -> None:
    cache = Cache(device, page_size)
    paged, lse = tessera.forward(
        cache.q, cache.k_pool, cache.v_pool, cache_lengths=cache.lengths, page_table=cache.table, causal=True
    )
    whole, whole_lse = tessera.forward(cache.q, cache.k, cache.v, key_lengths=cache.lengths, causal=True)
    torch.testing.assert_close(paged.float(), whole.float(), atol=1e-2, rtol=2e-2)
    torch.testing.assert_close(lse, whole_lse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("paged", [False, True])
def test_flash_attn_with_kvcache(device: str, paged: bool) -> None:
    cache = Cache(device, 16)
    k, v = cache.k[:, :2].clone() + 1, cache.v[:, :2].clone() + 1
    before = torch.tensor([94, 0, 31], device=device, dtype=torch.int32)
    expected_k, expected_v = cache.k.clone(), cache.v.clone()
    for b, length in enumerate(before.tolist()):
        expected_k[b, length : length + 2], expected_v[b, length : length + 2] = k[b], v[b]
    expected = tessera.torch.attention(cache.q, expected_k, expected_v, key_lengths=before + 2, causal=True)
    k_cache, v_cache = (cache.k_pool, cache.v_pool) if paged else (cache.k, cache.v)
    out = tessera.torch.flash_attn_with_kvcache(
        cache.q,
        k_cache,
        v_cache,
        k,
        v,
        cache_seqlens=before,
        block_table=cache.table if paged else None,
        causal=True,
    )
    torch.testing.assert_close(out.float(), expected.float(), atol=1e-2, rtol=2e-2)
    if not paged:
        assert torch.equal(cache.k, expected_k)
        assert torch.equal(cache.v, expected_v)


def test_flash_attn_with_kvcache_refuses_what_pages_do_not_have() -> None:
    cache = Cache("cpu", 16)
    call = tessera.torch.flash_attn_with_kvcache
    rows = torch.arange(BATCH)
    with pytest.raises(NotImplementedError, match="cache_batch_idx"):
        call(cache.q, cache.k_pool, cache.v_pool, block_table=cache.table, cache_batch_idx=rows)
    with pytest.raises(ValueError, match=r"cache_seqlens: .*accepted: 0 to 94"):
        k, v = cache.k[:, :2], cache.v[:, :2]
        call(cache.q, cache.k_pool, cache.v_pool, k, v, cache_seqlens=95, block_table=cache.table)


def test_append_keys_on_the_cpu_refuses_before_it_writes() -> None:
    cache = Cache("cpu", 16)
    before = cache.k_pool.clone()
    with pytest.raises(ValueError, match=r"key_lengths\[0\]: 96"):
        tessera.append_keys(cache.k[:, :1], cache.v[:, :1], cache.k_pool, cache.v_pool, cache.lengths, cache.table)
    assert torch.equal(before.nan_to_num(), cache.k_pool.nan_to_num())


def test_errors_name_the_argument() -> None:
    cache = Cache("cpu", 16)
    q, k, v = cache.q, cache.k_pool, cache.v_pool
    with pytest.raises(ValueError, match="page_table dtype: float32; accepted: int32"):
        tessera.forward(q, k, v, page_table=cache.table.float())
    with pytest.raises(ValueError, match="page_table: "):
        tessera.forward(q, k, v, page_table=cache.table[0])
    with pytest.raises(ValueError, match="key_lengths: "):
        tessera.forward(q, k, v, page_table=cache.table, cache_lengths=cache.lengths[:2])
    with pytest.raises(ValueError, match=r"page_table\[1\]\[0\]: 99"):
        cache.table[1] = 99
        tessera.forward(q, k, v, page_table=cache.table)


def test_compiles_without_a_graph_break() -> None:
    cache = Cache("cpu", 16)

    def step(q: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        out = tessera.torch.flash_attn_with_kvcache(
            q, cache.k_pool, cache.v_pool, cache_seqlens=lengths, block_table=cache.table
        )
        assert isinstance(out, torch.Tensor)
        return out

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert torch.equal(compiled(cache.q, cache.lengths), step(cache.q, cache.lengths))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_replays_while_the_cache_grows() -> None:
    cache = Cache("cuda", 16)
    lengths = torch.tensor([5, 0, 30], device="cuda", dtype=torch.int32)
    q, k, v = cache.q[:, :1].clone(), cache.k[:, :1].clone(), cache.v[:, :1].clone()
    k_pool, v_pool = cache.k_pool, cache.v_pool
    expected_k, expected_v = cache.k.clone(), cache.v.clone()

    def step() -> torch.Tensor:
        out = tessera.torch.flash_attn_with_kvcache(
            q, k_pool, v_pool, k, v, cache_seqlens=lengths, block_table=cache.table
        )
        assert isinstance(out, torch.Tensor)
        lengths.add_(1)
        return out

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    lengths.copy_(torch.tensor([5, 0, 30]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for n in range(10):
        for x in (q, k, v):
            x.normal_()
        for b, length in enumerate((5 + n, n, 30 + n)):
            expected_k[b, length], expected_v[b, length] = k[b, 0], v[b, 0]
        graph.replay()
        used = torch.tensor([6 + n, 1 + n, 31 + n])
        expected = tessera.torch.attention(q, expected_k, expected_v, key_lengths=used)
        torch.testing.assert_close(out.float(), expected.float(), atol=1e-2, rtol=2e-2)
