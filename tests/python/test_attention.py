"""forward and backward over the whole set of options, against NumPy float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tessera
from attention_reference import Scores, attention, band, relative_error

BOUND = 2e-6  # of float32 results, relative
IMPLS = [row["name"] for row in tessera.info()["impls"] if row["available"]]
ALL = float("inf")


@dataclass
class Case:
    """Shapes, the options given to Tessera and the same thing said to the reference."""

    batch: int = 2
    seq_q: int = 37
    seq_k: int = 53
    heads_q: int = 4
    heads_kv: int = 2
    dim_qk: int = 24
    dim_v: int = 24
    options: dict[str, Any] = field(default_factory=dict)
    band: tuple[float, float] = (ALL, ALL)
    diagonal: int | None = None  # bottom-right when None
    bias_shape: tuple[int, int, int, int] | None = None
    slopes_shape: tuple[int, ...] | None = None
    sinks: bool = False
    segments: bool = False


CASES = {
    "dense": Case(),
    "wide": Case(dim_qk=64, dim_v=128),
    "odd dims": Case(dim_qk=7, dim_v=19),
    "multi-query": Case(heads_q=6, heads_kv=1),
    "causal": Case(options={"causal": True}, band=(ALL, 0)),
    "causal, more queries than keys": Case(seq_q=61, seq_k=40, options={"causal": True}, band=(ALL, 0)),
    "causal top-left": Case(options={"causal": True, "alignment": "top_left"}, band=(ALL, 0), diagonal=0),
    "causal at -9": Case(options={"causal": True, "alignment": -9}, band=(ALL, 0), diagonal=-9),
    "window": Case(options={"window": (8, 3)}, band=(8, 3)),
    "window, open left": Case(options={"window": (None, 2)}, band=(ALL, 2)),
    "causal and window": Case(options={"causal": True, "window": (11, None)}, band=(11, 0)),
    "segments": Case(segments=True),
    "segments and causal": Case(seq_q=53, segments=True, options={"causal": True}, band=(ALL, 0)),
    "key lengths": Case(options={"key_lengths": [53, 17]}),
    "an empty key sequence": Case(options={"key_lengths": [0, 53]}),
    "key lengths and causal": Case(options={"key_lengths": np.array([20, 53]), "causal": True}, band=(ALL, 0)),
    "scale": Case(options={"scale": 0.3}),
    "softcap": Case(options={"softcap": 2.5, "scale": 1.0}),
    "bias": Case(bias_shape=(2, 4, 37, 53)),
    "bias, broadcast": Case(bias_shape=(1, 4, 1, 53)),
    "alibi": Case(slopes_shape=(4,), options={"causal": True}, band=(ALL, 0)),
    "alibi by batch": Case(slopes_shape=(2, 4)),
    "sinks": Case(sinks=True, options={"window": (5, 0)}, band=(5, 0)),
    "everything": Case(
        options={"causal": True, "window": (30, None), "softcap": 4.0, "scale": 0.5, "key_lengths": [53, 41]},
        band=(30, 0),
        bias_shape=(2, 1, 37, 53),
        slopes_shape=(4,),
        sinks=True,
    ),
    "nothing to see": Case(seq_k=0),
    "no query": Case(seq_q=0),
    "no sequence": Case(batch=0),
}


@dataclass
class Inputs:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    dlse: np.ndarray
    options: dict[str, Any]
    scores: Scores


def make_inputs(case: Case, seed: int = 1) -> Inputs:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def documents(length: int) -> np.ndarray:
        return np.sort(rng.integers(0, 4, (case.batch, length)), axis=1)

    options = dict(case.options)
    visible = np.ones((case.batch, case.heads_q, case.seq_q, case.seq_k), bool)
    lengths = options.get("key_lengths", [case.seq_k] * case.batch)
    diagonals = []
    for b, length in enumerate(lengths):
        diagonal = int(length) - case.seq_q if case.diagonal is None else case.diagonal
        visible[b] &= band(case.seq_q, case.seq_k, *case.band, diagonal) & (np.arange(case.seq_k) < length)
        diagonals.append(diagonal)
    if case.segments:
        query_ids, key_ids = documents(case.seq_q), documents(case.seq_k)
        options["segments"] = (query_ids.ravel(), key_ids.ravel())
        visible &= (query_ids[:, :, None] == key_ids[:, None, :])[:, None]
    if case.bias_shape:
        options["bias"] = normal(*case.bias_shape)
    if case.slopes_shape:
        options["alibi_slopes"] = rng.uniform(0.01, 0.2, case.slopes_shape).astype(np.float32)
    if case.sinks:
        options["sinks"] = normal(case.heads_q)
    scores = Scores(
        visible=visible,
        scale=options.get("scale", 1.0 / math.sqrt(case.dim_qk)),
        softcap=options.get("softcap", 0.0),
        bias=options.get("bias"),
        slopes=options.get("alibi_slopes"),
        diagonal=np.array(diagonals, dtype=int).reshape(-1, 1, 1, 1) if case.slopes_shape else 0,
        sinks=options.get("sinks"),
    )
    return Inputs(
        q=normal(case.batch, case.seq_q, case.heads_q, case.dim_qk),
        k=normal(case.batch, case.seq_k, case.heads_kv, case.dim_qk),
        v=normal(case.batch, case.seq_k, case.heads_kv, case.dim_v),
        dout=normal(case.batch, case.seq_q, case.heads_q, case.dim_v),
        dlse=normal(case.batch, case.heads_q, case.seq_q),
        options=options,
        scores=scores,
    )


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_forward(case: Case, impl: str) -> None:
    x = make_inputs(case)
    out, lse = tessera.forward(x.q, x.k, x.v, impl=impl, **x.options)
    expected = attention(x.q, x.k, x.v, x.scores)
    assert out.dtype == lse.dtype == np.float32
    assert relative_error(out, expected.out) <= BOUND
    assert relative_error(lse, expected.lse) <= BOUND


def test_backward(case: Case, impl: str) -> None:
    x = make_inputs(case)
    expected = attention(x.q, x.k, x.v, x.scores, x.dout, x.dlse)
    out, lse = tessera.forward(x.q, x.k, x.v, impl=impl, **x.options)
    wanted = {"dbias": case.bias_shape is not None, "dsinks": case.sinks}
    grads = tessera.backward(x.dout, x.q, x.k, x.v, out, lse, dlse=x.dlse, impl=impl, **wanted, **x.options)
    assert relative_error(grads.dq, expected.dq) <= BOUND
    assert relative_error(grads.dk, expected.dk) <= BOUND
    assert relative_error(grads.dv, expected.dv) <= BOUND
    if case.bias_shape:
        summed = tuple(axis for axis, extent in enumerate(case.bias_shape) if extent == 1)
        assert relative_error(grads.dbias, expected.dbias.sum(axis=summed, keepdims=True)) <= BOUND
    else:
        assert grads.dbias is None
    if case.sinks:
        assert relative_error(grads.dsinks, expected.dsinks) <= BOUND
    else:
        assert grads.dsinks is None


def test_backward_without_dlse(impl: str) -> None:
    x = make_inputs(CASES["causal"])
    out, lse = tessera.forward(x.q, x.k, x.v, impl=impl, **x.options)
    grads = tessera.backward(x.dout, x.q, x.k, x.v, out, lse, impl=impl, **x.options)
    expected = attention(x.q, x.k, x.v, x.scores, x.dout)
    assert relative_error(grads.dq, expected.dq) <= BOUND


def test_ragged_is_each_sequence_by_itself(impl: str) -> None:
    rng = np.random.default_rng(2)
    q_starts, k_starts = np.array([0, 5, 5, 41]), [0, 30, 33, 50]
    q, k, v, dout = (rng.standard_normal((n, 3, 16), dtype=np.float32) for n in (41, 50, 50, 41))
    ragged = {"cu_seqlens_q": q_starts, "cu_seqlens_k": k_starts, "causal": True, "impl": impl}
    out, lse = tessera.forward(q, k, v, **ragged)
    grads = tessera.backward(dout, q, k, v, out, lse, **ragged)
    assert lse.shape == (3, 41)
    for b in range(3):
        rows, keys = slice(q_starts[b], q_starts[b + 1]), slice(k_starts[b], k_starts[b + 1])
        one = [x[None] for x in (q[rows], k[keys], v[keys])]
        visible = band(one[0].shape[1], one[1].shape[1], ALL, 0, one[1].shape[1] - one[0].shape[1])
        expected = attention(*one, Scores(np.broadcast_to(visible, (1, 3, *visible.shape)), 0.25), dout[rows][None])
        assert relative_error(out[rows], expected.out[0]) <= BOUND
        assert relative_error(lse[:, rows], expected.lse[0]) <= BOUND
        assert relative_error(grads.dq[rows], expected.dq[0]) <= BOUND
        assert relative_error(grads.dk[keys], expected.dk[0]) <= BOUND
        assert relative_error(grads.dv[keys], expected.dv[0]) <= BOUND


def test_one_list_of_lengths_serves_queries_and_keys() -> None:
    q, k, v = (np.random.default_rng(3).standard_normal((12, 2, 8), dtype=np.float32) for _ in range(3))
    short, _ = tessera.forward(q, k, v, cu_seqlens_q=[0, 7, 12])
    long, _ = tessera.forward(q, k, v, cu_seqlens_q=[0, 7, 12], cu_seqlens_k=[0, 7, 12])
    np.testing.assert_array_equal(short, long)


def test_one_list_of_segments_serves_queries_and_keys() -> None:
    q, k, v = (np.random.default_rng(3).standard_normal((1, 5, 2, 8), dtype=np.float32) for _ in range(3))
    ids = [0, 0, 1, 1, 1]
    short, _ = tessera.forward(q, k, v, segments=ids)
    long, _ = tessera.forward(q, k, v, segments=(ids, ids))
    np.testing.assert_array_equal(short, long)


def test_dropout(impl: str) -> None:
    """With V = 1 the output is the dropped weights themselves: every one is 0 or the weight times 256 / (256 - n)."""
    case = Case(seq_k=128, dim_v=128, heads_kv=4)
    x = make_inputs(case)
    dropout = {"dropout_p": 0.25, "dropout_seed": 2**63 + 11, "impl": impl}
    identity = np.broadcast_to(np.eye(128, dtype=np.float32)[None, :, None, :], x.v.shape)
    weights, _ = tessera.forward(x.q, x.k, np.ascontiguousarray(identity), impl=impl)
    dropped, lse = tessera.forward(x.q, x.k, np.ascontiguousarray(identity), **dropout)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], weights[kept] * (4 / 3), rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 0.01

    x.scores.kept = kept.transpose(0, 2, 1, 3) * (4 / 3)
    expected = attention(x.q, x.k, x.v, x.scores, x.dout)
    out, lse = tessera.forward(x.q, x.k, x.v, **dropout)
    grads = tessera.backward(x.dout, x.q, x.k, x.v, out, lse, **dropout)
    for ours, theirs in zip(
        (out, lse, *grads[:3]), (expected.out, expected.lse, expected.dq, expected.dk, expected.dv), strict=False
    ):
        assert relative_error(ours, theirs) <= BOUND

    other_seed, _ = tessera.forward(x.q, x.k, np.ascontiguousarray(identity), **{**dropout, "dropout_seed": 12})
    assert ((other_seed != 0) != kept).mean() > 0.2


def test_dropout_start_places_a_part_in_the_whole() -> None:
    x = make_inputs(Case(seq_q=64, seq_k=64))
    whole, _ = tessera.forward(x.q, x.k, x.v, dropout_p=0.5, dropout_seed=5)
    part, _ = tessera.forward(
        x.q[1:, 20:], x.k[1:], x.v[1:], dropout_p=0.5, dropout_seed=5, dropout_start=(1, 0, 20, 0)
    )
    np.testing.assert_allclose(part, whole[1:, 20:], rtol=1e-5, atol=1e-6)


def test_merge_of_two_halves_is_the_whole() -> None:
    x = make_inputs(CASES["dense"])
    whole = attention(x.q, x.k, x.v, x.scores)
    a = tessera.forward(x.q, x.k[:, :20], x.v[:, :20])
    b = tessera.forward(x.q, x.k[:, 20:], x.v[:, 20:])
    out, lse = tessera.merge(*a, *b)
    assert relative_error(out, whole.out) <= BOUND
    assert relative_error(lse, whole.lse) <= BOUND
    in_place = tessera.merge(*a, *b, out=a[0], lse=a[1])
    assert in_place[0] is a[0]
    np.testing.assert_array_equal(a[0], out)
    np.testing.assert_array_equal(a[1], lse)


def test_results_do_not_depend_on_the_thread_count() -> None:
    x = make_inputs(CASES["everything"])
    one = tessera.forward(x.q, x.k, x.v, threads=1, **x.options)
    three = tessera.forward(x.q, x.k, x.v, threads=3, **x.options)
    np.testing.assert_array_equal(one[0], three[0])
    np.testing.assert_array_equal(one[1], three[1])
