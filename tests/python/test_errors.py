"""Errors: their type, and that the message names the argument, its value and what is accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tessera


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


Q = zeros(2, 6, 4, 8)
K = zeros(2, 9, 2, 8)
V = zeros(2, 9, 2, 5)

BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"causal": "yes"}, "causal: 'yes'; accepted: True or False"),
    "window": ({"window": 4}, "window: 4; accepted: a pair of integers or None"),
    "negative window": ({"window": (-1, 0)}, "window left: -1; accepted: 0 or more"),
    "alignment": ({"alignment": "left"}, 'alignment: "left"; accepted: "bottom_right", "top_left" or an integer'),
    "segments": ({"segments": [0, 1]}, "segments.query: 2 numbers; accepted: one for each token, 12"),
    "segment type": ({"segments": ["a"]}, "segments: "),
    "key_lengths": ({"key_lengths": [3]}, "key_lengths: 1 numbers; accepted: one for each sequence of the batch, 2"),
    "long key length": ({"key_lengths": [3, 10]}, r"key_lengths[1]: 10; accepted: 0 to 9"),
    "cu_seqlens_k alone": ({"cu_seqlens_k": [0, 1]}, "cu_seqlens_k: given; accepted: only together with cu_seqlens_q"),
    "cu_seqlens_q with four dimensions": ({"cu_seqlens_q": [0, 1]}, "q: float32[2, 6, 4, 8]"),
    "scale": ({"scale": "big"}, "scale: 'big'; accepted: a number"),
    "infinite scale": ({"scale": float("inf")}, "scale: inf; accepted: finite numbers"),
    "softcap": ({"softcap": -1.0}, "softcap: -1; accepted: 0 (none) or a positive finite number"),
    "dropout_p": ({"dropout_p": 1.5}, "dropout.probability: 1.5; accepted: 0 to 1"),
    "dropout_seed": ({"dropout_seed": -1}, "dropout_seed: -1; accepted: 0 to 2^64 - 1"),
    "dropout_start": ({"dropout_start": (0, 0)}, "dropout_start: (0, 0); accepted: four integers"),
    "bias rank": ({"bias": zeros(6, 9)}, "bias: float32[6, 9]"),
    "bias shape": ({"bias": zeros(1, 1, 5, 9)}, "bias_shape[2]: 5; accepted: 1 or seq_q, 6"),
    "bias type": ({"bias": [1.0]}, "bias: [1.0]; accepted: a DLPack tensor"),
    "bias dtype": ({"bias": zeros(1, 1, 6, 9, dtype=np.int32)}, "bias_dtype: int32; accepted: float32"),
    "slopes": ({"alibi_slopes": zeros(3)}, "alibi_slopes: float32[3]"),
    "sinks": ({"sinks": zeros(4, dtype=np.float64)}, "sinks dtype: float64; accepted: float32"),
    "output_dtype": ({"output_dtype": "int8"}, "int8"),
    "impl": ({"impl": "magic"}, "magic"),
    "isa": ({"isa": "mmx"}, "mmx"),
    "threads": ({"threads": -2}, "threads: -2"),
    "too many threads": ({"threads": 100_000}, "threads: 100000; accepted: 0 (the default) to 4096"),
    "threads in words": ({"threads": "2"}, "threads: '2'; accepted: 0 (all) to 4096"),
    "far alignment": ({"alignment": 2**62}, "mask diagonal: 4611686018427387904; accepted: -2^60 to 2^60"),
    "float32_products": ({"float32_products": "half"}, "float32_products: half; accepted: exact, tf32"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        tessera.forward(Q, K, V, **options)
    assert message in str(raised.value)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="unknown options: casual; accepted: mask, causal, window"):
        tessera.forward(Q, K, V, casual=True)


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        (Q[0], K, V, "q: float32[6, 4, 8]"),
        (Q, K[..., :7], V, "k: float32[2, 9, 2, 7]"),
        (Q, K[:, :8], V, "v: float32[2, 9, 2, 5]"),
        (Q, zeros(2, 9, 3, 8), zeros(2, 9, 3, 5), "heads_kv: 3; accepted: divisors of heads_q, 4"),
        (Q, K.astype(np.float16), V, "k dtype: float16; accepted: float32"),
        (Q.astype(np.int32), K, V, "dtype: int32; accepted: float32"),
        (zeros(2, 6, 4, 16)[..., ::2], K, V, "q stride of the last dimension: 2; accepted: 1"),
        (zeros(1, 3, 1, 600), zeros(1, 3, 1, 600), zeros(1, 3, 1, 600), "dim_qk: 600; accepted: 1 to 512"),
        (zeros(1, 1, 1, 1, 8), K, V, "q: DLPack rank: 5; accepted: 1 to 4"),
    ],
)
def test_bad_tensors(q: np.ndarray, k: np.ndarray, v: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        tessera.forward(q, k, v)
    assert message in str(raised.value)


def test_bad_outputs() -> None:
    with pytest.raises(ValueError, match=r"out: float32\[2, 6, 4, 8\]"):
        tessera.forward(Q, K, V, out=zeros(2, 6, 4, 8))
    with pytest.raises(ValueError, match="lse dtype: float64; accepted: float32"):
        tessera.forward(Q, K, V, lse=zeros(2, 4, 6, dtype=np.float64))
    with pytest.raises(ValueError, match="out: str; accepted: a DLPack tensor that can be written"):
        tessera.forward(Q, K, V, out="here")
    square = zeros(1, 4, 2, 8)
    with pytest.raises(ValueError, match="out: the memory of v; accepted: memory of its own"):
        tessera.forward(zeros(1, 4, 2, 8), zeros(1, 4, 2, 8), square, out=square)


def test_bad_gradients() -> None:
    out, lse = tessera.forward(Q, K, V)
    with pytest.raises(ValueError, match=r"dout: float32\[2, 6, 4, 8\]"):
        tessera.backward(Q, Q, K, V, out, lse)
    with pytest.raises(ValueError, match=r"dbias: "):
        tessera.backward(out, Q, K, V, out, lse, dbias=zeros(1, 1, 6, 9))
    with pytest.raises(ValueError, match="dsinks: "):
        tessera.backward(out, Q, K, V, out, lse, dsinks=zeros(4))
    with pytest.raises(ValueError, match="dk: the memory of k; accepted: memory of its own"):
        tessera.backward(out, Q, K, V, out, lse, dk=K)


@pytest.mark.parametrize("name", ["dbias", "dsinks"])
def test_gradients_of_what_is_not_there(name: str) -> None:
    out, lse = tessera.forward(Q, K, V)
    with pytest.raises(ValueError, match=f"^{name}: True; accepted: False"):
        tessera.backward(out, Q, K, V, out, lse, **{name: True})


def test_merge_of_different_shapes() -> None:
    out, lse = tessera.forward(Q, K, V)
    with pytest.raises(ValueError, match=r"b.lse"):
        tessera.merge(out, lse, out, lse[:, :2])
    with pytest.raises(TypeError, match="out_b: None; accepted: a DLPack tensor"):
        tessera.merge(out, lse, None, lse)


def test_what_is_right_but_not_there_is_not_implemented() -> None:
    """The standard implementation has no float64."""
    q, k, v = (x.astype(np.float64) for x in (Q, K, V))
    with pytest.raises(NotImplementedError, match="standard"):
        tessera.forward(q, k, v, impl="standard")


def test_not_a_tensor() -> None:
    with pytest.raises(TypeError, match="q: list; accepted: a DLPack tensor"):
        tessera.forward([1.0], K, V)
    with pytest.raises(TypeError, match="q: None; accepted: a DLPack tensor"):
        tessera.forward(None, K, V)


def test_not_integers() -> None:
    with pytest.raises(TypeError, match="key_lengths: 5; accepted: a sequence of integers"):
        tessera.forward(Q, K, V, key_lengths=5)
