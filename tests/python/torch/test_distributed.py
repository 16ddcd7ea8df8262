"""tessera.torch.distributed on process groups of gloo: what one device computes, forward and backward."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import oracle
import pytest
import ranks
import tessera
import tessera.torch
import torch
import torch.distributed as dist
from tessera.distributed import Communicator
from tessera.torch import distributed as ring
from torch import Tensor


@dataclass
class Case:
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "zigzag"
    schedule: str = "automatic"
    seq_q: int = 75
    seq_k: int = 75
    heads_kv: int = 2
    dtype: torch.dtype = torch.float32
    extras: tuple[str, ...] = ()  # of bias, sinks, alibi_slopes
    ranks_per_node: int = 0
    documents: tuple[int, ...] = ()


CASES = {
    f"{layout}, {schedule}": Case({"causal": True}, layout, schedule)
    for layout in ("zigzag", "striped", "contiguous")
    for schedule in ("ring", "burst", "automatic")
} | {
    "double_ring": Case({"causal": True}, schedule="double_ring", ranks_per_node=2),
    "no mask, one head each": Case(heads_kv=4),
    "multi-query": Case({"causal": True}, heads_kv=1),
    "window": Case({"window": (20, 3), "softcap": 5.0, "scale": 0.3}),
    "cross": Case({"mask": tessera.Mask(causal=True)}, seq_q=40, seq_k=91),
    "fewer tokens than parts": Case({"causal": True}, seq_q=5, seq_k=5),
    "dropout": Case({"causal": True, "dropout_p": 0.3, "dropout_seed": 2**63 + 5}),
    "dropout, striped, burst": Case({"dropout_p": 0.3, "dropout_seed": 9}, "striped", "burst"),
    "ALiBi and sinks": Case({"causal": True}, "striped", extras=("alibi_slopes", "sinks")),
    "bias": Case(extras=("bias",)),
    "key lengths": Case({"key_lengths": [75, 31]}),
    "segments": Case({"causal": True, "segments": torch.arange(150) % 75 // 20}),
    "documents": Case({"causal": True}, documents=(0, 13, 13, 60, 75)),
    "bfloat16": Case({"causal": True}, dtype=torch.bfloat16),
}
SIZES = (2, 4)


def make(case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k, v, dout, dlse of the whole problem, and its other tensors."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch = 1 if case.documents else 2
    tensors = [
        normal(batch, case.seq_q, 4, 16),
        normal(batch, case.seq_k, case.heads_kv, 16),
        normal(batch, case.seq_k, case.heads_kv, 24),
        normal(batch, case.seq_q, 4, 24),
    ]
    tensors = [x.to(case.dtype) for x in tensors] + [normal(batch, 4, case.seq_q)]
    extras = {"bias": normal(1, 4, case.seq_q, case.seq_k), "sinks": normal(4), "alibi_slopes": normal(4).abs()}
    return tensors, {name: extras[name] for name in case.extras}


def differentiate(outputs: tuple[Tensor, Tensor], leaves: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [x.detach() for x in (*outputs, *torch.autograd.grad(outputs, leaves, gradients))]


def on_one_device(case: Case) -> list[Tensor]:
    """out, lse, dq, dk, dv and the gradients of bias and sinks."""
    (q, k, v, dout, dlse), extras = make(case)
    trained = [x.requires_grad_() for name, x in extras.items() if name != "alibi_slopes"]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    options = {**case.options, **extras}
    if case.documents:
        options["cu_seqlens_q"] = list(case.documents)
        out, lse = tessera.torch.attention(q[0], k[0], v[0], return_lse=True, **options)
        return differentiate((out[None], lse[None]), leaves + trained, [dout, dlse])
    return differentiate(tessera.torch.attention(q, k, v, return_lse=True, **options), leaves + trained, [dout, dlse])


def on_this_rank(case: Case) -> list[Tensor]:
    """The same by all ranks, put together."""
    tensors, extras = make(case)
    layout: Any = case.layout
    trained = [x.requires_grad_() for name, x in extras.items() if name != "alibi_slopes"]
    parts = [ring.shard(x, layout=layout, axis=axis) for x, axis in zip(tensors, (1, 1, 1, 1, 2), strict=True)]
    leaves = [x.requires_grad_() for x in parts[:3]]
    options = {**case.options, **extras}
    inputs = leaves
    if case.documents:
        options["cu_seqlens_q"] = torch.tensor(case.documents)
        inputs = [x[0] for x in leaves]
    outputs = ring.attention(
        *inputs,
        layout=layout,
        schedule=case.schedule,
        ranks_per_node=case.ranks_per_node,
        return_lse=True,
        **options,
    )
    if case.documents:
        outputs = (outputs[0][None], outputs[1][None])
    found = differentiate(outputs, leaves + trained, parts[3:])
    for share in found[5:]:
        dist.all_reduce(share)
    axes = (1, 2, 1, 1, 1)
    return [ring.unshard(x, layout=layout, axis=axis) for x, axis in zip(found, axes, strict=False)] + found[5:]


def all_cases() -> dict[str, list[Tensor]] | None:
    results = {}
    for name, case in CASES.items():
        if case.ranks_per_node <= dist.get_world_size():
            results[name] = on_this_rank(case)
    again = {name: on_this_rank(CASES[name]) for name in ("zigzag, burst", "dropout", "documents")}
    assert all(torch.equal(x, y) for name, some in again.items() for x, y in zip(some, results[name], strict=True))
    communicator = Communicator.from_process_group()
    assert communicator.transport == "tcp"
    assert (communicator.rank, communicator.size) == (dist.get_rank(), dist.get_world_size())
    return results if dist.get_rank() == 0 else None


@pytest.fixture(scope="module", params=SIZES)
def results(request: pytest.FixtureRequest) -> dict[str, list[Tensor]]:
    return ranks.values(ranks.run(request.param, all_cases))[0]


@pytest.mark.parametrize("name", CASES)
def test_ranks_compute_what_one_device_does(results: dict[str, list[Tensor]], name: str) -> None:
    case = CASES[name]
    right = on_one_device(case)
    found = results[name]
    assert len(found) == len(right)
    for x, y in zip(found, right, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        finite = torch.isfinite(y)
        assert torch.equal(torch.isfinite(x), finite)
        bound = 2e-6 if case.dtype == torch.float32 else 2.0**-7
        assert oracle.relative_error(x[finite], y[finite]) <= bound


def positions_and_layouts() -> None:
    for layout in ("zigzag", "striped", "contiguous"):
        for length in (0, 1, 7, 64):
            whole = torch.arange(3 * length).reshape(3, length)
            places = ring.positions(length, layout=layout)
            part = ring.shard(whole, layout=layout)
            assert torch.equal(part, whole[:, places])
            assert torch.equal(ring.unshard(part, layout=layout), whole)
    x = torch.randn(1, 9, requires_grad=True)
    ring.shard(x).sum().backward()
    assert int(x.grad.sum()) == len(ring.positions(9))


def test_positions_shard_and_unshard() -> None:
    ranks.values(ranks.run(3, positions_and_layouts))


def seeds_of_rank_0() -> tuple[int, Tensor]:
    torch.manual_seed(100 + dist.get_rank())
    seed = int(torch.randint(0, 2**63 - 1, (1,)))
    torch.manual_seed(100 + dist.get_rank())
    (q, k, v, *_), _ = make(Case())
    out = ring.attention(*(ring.shard(x) for x in (q, k, v)), dropout_p=0.5)
    return seed, ring.unshard(out)


def test_a_seed_that_nobody_gave_is_that_of_rank_0() -> None:
    answers = ranks.values(ranks.run(2, seeds_of_rank_0))
    (q, k, v, *_), _ = make(Case())
    right = tessera.torch.attention(q, k, v, dropout_p=0.5, dropout_seed=answers[0][0])
    assert oracle.relative_error(answers[1][1], right) <= 2e-6


def subgroups() -> tuple[int, Tensor]:
    """Two groups of two ranks, as beside data parallelism, each with a problem of its own."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
    sequences = mesh.get_local_rank("data")
    (q, k, v, *_), _ = make(Case())
    own = [ring.shard(x[sequences : sequences + 1], group=mesh["context"]) for x in (q, k, v)]
    out = ring.attention(*own, group=mesh["context"], causal=True)
    assert Communicator.from_process_group(mesh["context"]).size == 2
    return sequences, ring.unshard(out, group=mesh.get_group("context"))


def test_groups_beside_each_other() -> None:
    (q, k, v, *_), _ = make(Case())
    right = tessera.torch.attention(q, k, v, causal=True)
    for sequence, out in ranks.values(ranks.run(4, subgroups)):
        assert oracle.relative_error(out, right[sequence : sequence + 1]) <= 2e-6


def refusals() -> list[tuple[str, str]]:
    """What each rank heard, one by one; the group goes on."""
    rank = dist.get_rank()
    q, k, v = (torch.zeros(1, 6, 2, 8) for _ in range(3))
    heard = []

    def attempt(*tensors: Any, **options: Any) -> None:
        try:
            ring.attention(*tensors, **options)
        except Exception as error:
            heard.append((type(error).__name__, str(error)))
        else:
            heard.append(("", ""))

    attempt(q[:, : 6 - (rank == 1)], k, v)
    attempt(q, k, v[:, :5] if rank == 1 else v)
    attempt(q, k, v, scale="wide" if rank == 0 else None)
    attempt(q, k, v, unknown=1)
    attempt(q, k, v, layout="spiral")
    attempt(q, k, v, mask=torch.ones(1, 1, 12, 12, dtype=torch.bool))
    attempt(q.double(), k.double(), v.double())
    attempt(q, k, v, causal=True)
    attempt(q, k, v, causal=rank == 1)
    attempt(q, k, v)  # the group has failed; the process group makes another
    return heard


def test_wrong_arguments_are_exceptions_on_all_ranks() -> None:
    first, second = ranks.values(ranks.run(2, refusals))
    lengths = ("ValueError", "queries of the ranks: 6, 5; accepted: 5, 6, the zigzag parts of 11")
    assert first[0] == second[0] == lengths
    assert second[1][0] == "ValueError"
    assert second[1][1].startswith("v: float32[1, 5, 2, 8]")
    assert first[1] == ("ConnectionError", f"rank 1 failed: {second[1][1]}")
    assert first[2][0] == "ValueError"
    assert second[2] == ("ConnectionError", f"rank 0 failed: {first[2][1]}")
    for n, kind, word in (
        (3, "TypeError", "unknown"),
        (4, "ValueError", "spiral"),
        (5, "NotImplementedError", "boolean"),
        (6, "NotImplementedError", "float64"),
    ):
        for heard in (first, second):
            assert heard[n][0] in (kind, "ConnectionError")
            assert word in heard[n][1]
    assert first[7] == second[7] == ("", "")
    for heard in (first, second):
        assert heard[8][0] == "ConnectionError"
        assert "rank 1 plans something else" in heard[8][1]
        assert heard[9] == ("", "")


def lose_rank_1(how: str) -> tuple[str, str, float]:
    """What a rank hears, and after how many seconds."""
    communicator = Communicator.from_process_group(timeout=2)
    q, k, v = (torch.zeros(1, 50, 2, 8) for _ in range(3))
    ring.attention(q, k, v, group=communicator)
    if dist.get_rank() == 1:
        if how == "raises":
            raise RuntimeError("enough")
        os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)
    begin = time.monotonic()
    try:
        ring.attention(q, k, v, group=communicator)
    except ConnectionError as error:
        return type(error).__name__, str(error), time.monotonic() - begin
    return "", "", 0.0


@pytest.mark.parametrize(
    ("how", "words"), [("dies", "rank 1 left"), ("stops", "rank 1 was silent for 2 s"), ("raises", "rank 1 left")]
)
def test_a_lost_rank_is_named_within_the_timeout(how: str, words: str) -> None:
    answers = ranks.run(3, lose_rank_1, how, lost=1)
    for kind, text, seconds in (answers[0], answers[2]):
        assert kind == "ConnectionError"
        assert words in text
        assert seconds < 6
