"""Mask, and boolean masks: what they compute, and that bands among them are recognised."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import tessera
from attention_reference import Scores, attention, band, relative_error
from tessera import _tessera

RNG = np.random.default_rng(6)
ALL = float("inf")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


Q, K, V = normal(2, 9, 4, 8), normal(2, 12, 2, 8), normal(2, 12, 2, 8)
FIRST = np.arange(12) < np.array([[12], [5]])  # keys of each sequence
LAST = np.arange(12) >= np.array([[0], [4]])

BANDS = {
    "everything": np.ones((9, 12), bool),
    "nothing": np.zeros((9, 12), bool),
    "causal": band(9, 12, ALL, 0, 3),
    "causal top-left": band(9, 12, ALL, 0, 0),
    "reverse causal": band(9, 12, 0, ALL, 3),
    "window": band(9, 12, 2, 1, 3),
    "beside the diagonal": band(9, 12, -2, 4, 0),
    "left of the keys": band(9, 12, ALL, -3, 0),
    "right padding": FIRST[:, None, None, :],
    "left padding": LAST[:, None, None, :],
    "causal and right padding": band(9, 12, ALL, 0, 3) & FIRST[:, None, None, :],
    "causal and left padding": band(9, 12, ALL, 0, 3) & LAST[:, None, None, :],
    "window and left padding": band(9, 12, 2, 0, 3) & LAST[:, None, None, :],
    "one key": np.arange(12)[None, :] == 7,
}
OTHERS = {
    "checkerboard": (np.arange(9)[:, None] + np.arange(12)) % 2 == 0,
    "prefix": band(9, 12, ALL, 0, 3) | (np.arange(12) < 6),
    "a head of its own": np.stack([band(9, 12, ALL, 0, 3)] * 3 + [band(9, 12, ALL, 0, 2)])[None],
    "a band for each sequence": np.stack([band(9, 12, 2, 0, 3), band(9, 12, 1, 0, 3)])[:, None],
    "rows by themselves": np.arange(9)[:, None] % 2 == np.zeros(12),
}


def whole(mask: np.ndarray) -> np.ndarray:
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def expected(mask: np.ndarray, **scores: Any) -> Any:
    visible = np.broadcast_to(whole(mask), (2, 4, 9, 12))
    return attention(Q, K, V, Scores(visible=visible, scale=8**-0.5, **scores))


@pytest.mark.parametrize("mask", (BANDS | OTHERS).values(), ids=(BANDS | OTHERS).keys())
def test_boolean_masks(mask: np.ndarray) -> None:
    out, lse = tessera.attention(Q, K, V, mask=whole(mask), return_lse=True)
    assert relative_error(out, expected(mask).out) <= 2e-6
    assert relative_error(lse, expected(mask).lse) <= 2e-6


@pytest.mark.parametrize("mask", BANDS.values(), ids=BANDS.keys())
def test_bands_are_recognised(mask: np.ndarray) -> None:
    assert "blocks" not in _tessera.options_of_mask(whole(mask), Q, K, True)
    assert "blocks" not in tessera.explain(Q, K, V, mask=whole(mask))


@pytest.mark.parametrize("mask", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_band_is_not(mask: np.ndarray) -> None:
    assert _tessera.options_of_mask(whole(mask), Q, K, True).keys() == {"blocks"}
    assert "blocks 128x128" in tessera.explain(Q, K, V, mask=whole(mask))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (4, 3), (3, 6)])
def test_every_band_within_every_range_of_keys(queries: int, keys: int) -> None:
    """Whatever the recognition says, it means the same as the mask."""
    q, k = np.zeros((2, queries, 1, 1), np.float32), np.zeros((2, keys, 1, 1), np.float32)
    sides = (0, 1, keys, ALL)
    for left, right, diagonal in itertools.product(sides, sides, range(-queries, keys + 1)):
        for begin, end in itertools.combinations(range(keys + 1), 2):
            used = (np.arange(keys) >= begin) & (np.arange(keys) < end)
            whole_band = band(queries, keys, left, right, diagonal)
            mask = np.stack([whole_band & used, whole_band])
            options = _tessera.options_of_mask(mask[:, None], q, k, True)
            if "blocks" in options:  # the sequences have different bands, once each is cut to its keys
                continue
            assert (meaning(options, queries, keys) == mask).all(), (left, right, diagonal, begin, end, options)


def meaning(options: dict[str, Any], queries: int, keys: int) -> np.ndarray:
    left, right = (ALL if side is None else side for side in options.get("window", (None, None)))
    lengths = options.get("key_lengths", [keys, keys])
    visible = np.stack(
        [
            band(queries, keys, left, right, options.get("alignment", 0)) & (np.arange(keys) < length)
            for length in lengths
        ]
    )
    if "segments" in options:
        query_ids, key_ids = (np.array(ids).reshape(2, -1) for ids in options["segments"])
        assert (np.diff(query_ids) >= 0).all()
        assert (np.diff(key_ids) >= 0).all()
        visible &= query_ids[:, :, None] == key_ids[:, None, :]
    return visible


def test_blocks_of_a_boolean_mask() -> None:
    """Whole, hidden and mixed blocks, other ones for each sequence and head, and a last block that is not whole."""
    q, k, v = normal(2, 300, 2, 8), normal(2, 280, 2, 8), normal(2, 280, 2, 8)
    kinds = RNG.choice([0.0, 0.5, 1.0], (2, 2, 3, 3)).repeat(128, axis=2).repeat(128, axis=3)[:, :, :300, :280]
    mask = RNG.random(kinds.shape) < kinds
    out, lse = tessera.forward(q, k, v, mask=mask)
    dout = normal(*out.shape)
    gradients = tessera.backward(dout, q, k, v, out, lse, mask=mask)
    exact = attention(q, k, v, Scores(mask, 8**-0.5), dout)
    assert relative_error(out, exact.out) <= 2e-6
    assert relative_error(gradients.dq, exact.dq) <= 2e-6
    assert relative_error(gradients.dk, exact.dk) <= 2e-6


MIXED = RNG.random((2, 1, 9, 12)) > 0.4


def test_a_block_mask_says_the_same_as_its_boolean_one() -> None:
    blocks = tessera.BlockMask.from_boolean(MIXED, block_q=16, block_k=32)
    assert (blocks.batch, blocks.heads, blocks.queries, blocks.keys) == (2, 1, 9, 12)
    assert (blocks.block_q, blocks.block_k) == (16, 32)
    out = tessera.attention(Q, K, V, mask=tessera.Mask(blocks=blocks))
    assert relative_error(out, expected(MIXED).out) <= 2e-6
    np.testing.assert_array_equal(tessera.attention(Q, K, V, blocks=blocks), out)
    out = tessera.attention(Q, K, V, blocks=blocks, causal=True, key_lengths=[12, 5])
    positions = np.arange(12)[None, :] - np.arange(9)[:, None] - np.array([3, -4])[:, None, None]
    assert relative_error(out, expected(MIXED & FIRST[:, None, None, :] & (positions <= 0)[:, None]).out) <= 2e-6


def test_block_masks_are_values() -> None:
    mask = RNG.random((1, 1, 40, 70)) > 0.4
    blocks = tessera.BlockMask.from_boolean(mask, block_q=16, block_k=32)
    other = tessera.BlockMask.from_boolean(~mask, block_q=16, block_k=32)
    assert pickle.loads(pickle.dumps(blocks)) == blocks == tessera.BlockMask.from_bytes(blocks.to_bytes())
    assert hash(blocks) == hash(copy.copy(blocks))
    assert blocks != other
    assert blocks != 3
    assert (blocks & other).kept_blocks == 0
    assert (blocks | other).density == 1.0
    assert (blocks | other).draw() == "###\n###\n###\n"
    assert repr(blocks).startswith("blocks 16x32")


def test_a_block_mask_from_whole_blocks() -> None:
    kept = RNG.random((2, 1, 3, 2)) > 0.4
    pairs = kept.repeat(16, axis=2).repeat(32, axis=3)[:, :, :40, :50]
    blocks = tessera.BlockMask.from_blocks(kept, 40, 50, block_q=16, block_k=32)
    assert blocks == tessera.BlockMask.from_boolean(np.ascontiguousarray(pairs), block_q=16, block_k=32)
    with pytest.raises(ValueError, match=r"mask: bool\[2, 1, 3, 2\]; accepted: bool\[2 or 1, 1 or 1, 4 or 1, 2 or 1\]"):
        tessera.BlockMask.from_blocks(kept, 50, 50, block_q=16, block_k=32)
    with pytest.raises(ValueError, match="block_q"):
        tessera.BlockMask.from_blocks(kept, 40, 50, block_q=0)


def test_a_block_mask_beside_a_boolean_one() -> None:
    blocks = tessera.BlockMask.from_boolean(MIXED)
    for mask in (OTHERS["checkerboard"], BANDS["causal"], BANDS["causal and left padding"]):
        out = tessera.attention(Q, K, V, blocks=blocks, mask=whole(mask))
        assert relative_error(out, expected(MIXED & whole(mask)).out) <= 2e-6


def test_bad_block_masks() -> None:
    with pytest.raises(ValueError, match=r"mask: \[9, 12\]; accepted: bool\[batch or 1, heads or 1, seq_q, seq_k\]"):
        tessera.BlockMask.from_boolean(MIXED[0, 0])
    with pytest.raises(ValueError, match="mask: 'causal'; accepted: a boolean tensor"):
        tessera.BlockMask.from_boolean("causal")
    with pytest.raises(ValueError, match="kept: None; accepted: a boolean tensor"):
        tessera.BlockMask.from_blocks(None, 16, 16)
    with pytest.raises(ValueError, match="bytes of a block mask: another kind of data"):
        tessera.BlockMask.from_bytes(b"no mask")
    with pytest.raises(ValueError, match=r"blocks: 3; accepted: a tessera\.BlockMask"):
        tessera.attention(Q, K, V, blocks=3)
    with pytest.raises(ValueError, match=r"block mask: grid\.queries: 8; accepted: seq_q, 9"):
        tessera.attention(Q, K, V, blocks=tessera.BlockMask.from_boolean(MIXED[:, :, :8]))


def test_strided_boolean_masks() -> None:
    mask = band(9, 12, ALL, 0, 3)
    for view in (whole(np.asfortranarray(mask)), np.repeat(whole(mask), 2, axis=3)[..., ::2], whole(mask)[:, :, ::1]):
        np.testing.assert_array_equal(tessera.attention(Q, K, V, mask=view), tessera.attention(Q, K, V, causal=True))


def test_a_boolean_mask_beside_other_options() -> None:
    mask = band(9, 12, ALL, 0, 3)
    slopes, bias = np.array([0.1, 0.2, 0.3, 0.4], np.float32), normal(1, 4, 1, 12)
    out = tessera.attention(Q, K, V, mask=whole(mask), alibi_slopes=slopes, bias=bias)
    assert relative_error(out, expected(mask, slopes=slopes, diagonal=3, bias=bias).out) <= 2e-6
    out = tessera.attention(Q, K, V, mask=whole(mask), key_lengths=[12, 5])
    assert relative_error(out, expected(mask & FIRST[:, None, None, :]).out) <= 2e-6
    out = tessera.attention(Q, K, V, mask=whole(OTHERS["checkerboard"]), causal=True)
    assert relative_error(out, expected(mask & OTHERS["checkerboard"]).out) <= 2e-6


def test_gradients_with_a_boolean_mask() -> None:
    mask, bias = np.broadcast_to(OTHERS["checkerboard"], (2, 1, 9, 12)), normal(1, 4, 1, 12)
    out, lse = tessera.forward(Q, K, V, mask=mask, bias=bias)
    dout = normal(*out.shape)
    gradients = tessera.backward(dout, Q, K, V, out, lse, mask=mask, bias=bias, dbias=True)
    scores = Scores(np.broadcast_to(mask, (2, 4, 9, 12)), 8**-0.5, bias=bias)
    exact = attention(Q, K, V, scores, dout)
    assert relative_error(gradients.dq, exact.dq) <= 2e-6
    assert relative_error(gradients.dbias, exact.dbias.sum(axis=(0, 2), keepdims=True)) <= 2e-6
    with pytest.raises(ValueError, match=r"^dbias: True; accepted: False"):
        tessera.backward(dout, Q, K, V, out, lse, mask=mask, dbias=True)


def test_mask_says_the_same_as_its_fields() -> None:
    ids = ([0] * 5 + [1] * 4, [0] * 6 + [1] * 6)
    fields = {"causal": True, "window": (4, None), "alignment": 2, "segments": tuple(2 * part for part in ids)}
    np.testing.assert_array_equal(
        tessera.attention(Q, K, V, mask=tessera.Mask(**fields)), tessera.attention(Q, K, V, **fields)
    )
    np.testing.assert_array_equal(tessera.attention(Q, K, V, mask=tessera.Mask()), tessera.attention(Q, K, V))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"mask": tessera.Mask(causal=True), "window": (1, 1)}, ValueError, "beside window; accepted: one of them"),
        ({"mask": np.ones((9, 12), bool)}, ValueError, "mask: bool[9, 12]; accepted: bool[2 or 1, 4 or 1, 9 or 1, 12"),
        ({"mask": np.ones((1, 1, 9, 11), bool)}, ValueError, "mask: bool[1, 1, 9, 11]"),
        ({"mask": np.ones((1, 1, 9, 12), np.uint8)}, ValueError, "mask: a tensor that is not boolean"),
        ({"mask": "causal"}, TypeError, "mask: 'causal'; accepted: a boolean tensor or tessera.Mask"),
    ],
)
def test_bad_masks(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as raised:
        tessera.attention(Q, K, V, **options)
    assert message in str(raised.value)


def test_a_boolean_mask_of_ragged_tensors() -> None:
    with pytest.raises(ValueError, match=r"mask: a boolean tensor with q float32\[9, 4, 8\]"):
        tessera.attention(
            Q[0], K[0], V[0], mask=np.ones((1, 1, 9, 12), bool), cu_seqlens_q=[0, 9], cu_seqlens_k=[0, 12]
        )
