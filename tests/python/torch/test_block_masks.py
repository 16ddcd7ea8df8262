"""BlockMask in tessera.torch, and those of FlexAttention."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import tessera
import torch
from tessera.torch import attention, block_mask_of
from torch.nn.attention import flex_attention


def inputs() -> list[torch.Tensor]:
    return [torch.randn(2, n, h, 16, requires_grad=True) for n, h in ((150, 4), (200, 2), (200, 2))]


MASK = torch.rand(2, 4, 150, 200, generator=torch.Generator().manual_seed(2)) > 0.5
MASK[:, 1:3, :64] = False
MASK[:, :, 64:128, 64:] = True


@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients(compiled: bool) -> None:
    blocks = tessera.BlockMask.from_boolean(MASK, block_q=64, block_k=64)
    qkv = inputs()

    def call(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, mask=tessera.Mask(blocks=blocks))

    out = (torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call)(*qkv)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    # A row that sees nothing is 0 here; its softmax of nothing would be NaN.
    seen = MASK.any(dim=-1, keepdim=True)
    expected, _ = oracle.attention(*exact, visible=MASK | ~seen)
    expected = expected * seen.transpose(1, 2)
    assert oracle.relative_error(out, expected) <= 2e-6
    dout = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, exact, dout.double())
    for x, y in zip(torch.autograd.grad(out, qkv, dout), wanted, strict=True):
        assert oracle.relative_error(x, y) <= 2e-6


def document_mask(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q // 70 == k // 70) & (q >= k) & (h + b < 4)


MODS = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q - k).abs() <= 40,
    "documents": document_mask,
    "nothing": lambda b, h, q, k: q < 0,
}


@pytest.mark.parametrize("mod", MODS.values(), ids=MODS.keys())
@pytest.mark.parametrize("block", [64, (128, 32)])
def test_masks_of_flex_attention(mod: Any, block: Any) -> None:
    flex = flex_attention.create_block_mask(mod, 2, 4, 150, 200, device="cpu", BLOCK_SIZE=block)
    dense = flex_attention.create_mask(mod, 2, 4, 150, 200, device="cpu")
    blocks = block_mask_of(flex)
    assert blocks == tessera.BlockMask.from_boolean(dense.contiguous(), blocks.block_q, blocks.block_k)
    assert (blocks.block_q, blocks.block_k) == ((64, 64) if block == 64 else block)


def test_a_flex_mask_without_a_function_keeps_whole_blocks() -> None:
    flex = flex_attention.BlockMask.from_kv_blocks(
        torch.tensor([[[1, 2]]]), torch.tensor([[[[1, 0], [0, 1]]]]), BLOCK_SIZE=64, seq_lengths=(128, 128)
    )
    assert block_mask_of(flex).draw() == ".#\n##\n"


def test_what_is_no_flex_mask() -> None:
    with pytest.raises(TypeError, match="flex: 5; accepted: a BlockMask of torch"):
        block_mask_of(5)
