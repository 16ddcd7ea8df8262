"""Tensors on a GPU, through torch and CuPy: results, streams, graphs, autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import oracle
import pytest
import tessera
import tessera.torch
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LONG_CYCLES = 40_000_000  # about 20 ms


@dataclass
class Case:
    batch: int = 2
    seq_q: int = 200
    seq_k: int = 333
    heads_q: int = 4
    heads_kv: int = 4
    dim: int = 64
    causal: bool = False
    dtype: torch.dtype = torch.bfloat16


CASES = {
    "d64": Case(),
    "d64, causal": Case(causal=True),
    "d128, float16": Case(dim=128, dtype=torch.float16),
    "d128, causal, grouped": Case(dim=128, heads_q=8, heads_kv=2, causal=True),
    "d256, causal": Case(dim=256, causal=True, seq_q=333),
    "d96, multi-query": Case(dim=96, heads_kv=1),
    "d72": Case(dim=72, dtype=torch.float16, causal=True),
    "one query": Case(seq_q=1, causal=True),
    "more queries than keys": Case(seq_q=300, seq_k=150, causal=True),
}


def make(case: Case, seed: int = 1) -> list[torch.Tensor]:
    """q, k, v, dout."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(seq: int, heads: int) -> torch.Tensor:
        shape = (case.batch, seq, heads, case.dim)
        return torch.randn(shape, generator=generator, device=DEVICE).to(case.dtype)

    return [
        normal(case.seq_q, case.heads_q),
        normal(case.seq_k, case.heads_kv),
        normal(case.seq_k, case.heads_kv),
        normal(case.seq_q, case.heads_q),
    ]


def visible(case: Case) -> torch.Tensor | None:
    if not case.causal:
        return None
    return oracle.band(case.seq_q, case.seq_k, float("inf"), 0, case.seq_k - case.seq_q).to(DEVICE)


def expected(
    case: Case, tensors: list[torch.Tensor], dlse: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """out, lse and the gradients, in float64."""
    q, k, v = (x.double().requires_grad_() for x in tensors[:3])
    # The first queries may see nothing: 0, -inf and no gradient.
    blind = max(0, case.seq_q - case.seq_k) if case.causal else 0
    mask = visible(case)
    out, lse = oracle.attention(q[:, blind:], k, v, None if mask is None else mask[blind:])
    loss = (out * tensors[3][:, blind:].double()).sum()
    if dlse is not None:
        loss = loss + (lse * dlse[..., blind:]).sum()
    gradients = torch.autograd.grad(loss, (q, k, v))
    out = torch.nn.functional.pad(out, (0, 0, 0, 0, blind, 0))
    return out, torch.nn.functional.pad(lse, (blind, 0), value=-float("inf")), gradients


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_forward_and_backward(case: Case) -> None:
    tensors = make(case)
    q, k, v, dout = tensors
    dlse = torch.randn(case.batch, case.heads_q, case.seq_q, device=DEVICE)
    out, lse = tessera.forward(q, k, v, causal=case.causal)
    grads = tessera.backward(dout, q, k, v, out, lse, dlse=dlse, causal=case.causal)
    assert {x.device for x in (out, lse, *grads[:3])} == {q.device}
    assert (out.dtype, lse.dtype, grads.dq.dtype) == (case.dtype, torch.float32, case.dtype)
    right_out, right_lse, right_grads = expected(case, tensors, dlse)
    rounding = ROUNDING[case.dtype]
    assert oracle.relative_error(out, right_out) <= 4 * rounding
    torch.testing.assert_close(lse.double(), right_lse, rtol=1e-5, atol=1e-3)
    for ours, right in zip(grads[:3], right_grads, strict=True):
        assert ours.shape == right.shape
        assert oracle.relative_error(ours, right) <= 8 * rounding


def test_strides_are_taken_as_they_are() -> None:
    case = Case(seq_q=160, seq_k=160, causal=True)
    q, k, v, dout = make(case)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    packed = list(torch.stack((q, k, v), dim=2).unbind(2))
    results = []
    for some in ((q, k, v), heads_first, packed):
        out, lse = tessera.forward(*some, causal=True)
        results.append((out, lse, *tessera.backward(dout, *some, out, lse, causal=True)[:3]))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_outputs_are_written_where_told() -> None:
    q, k, v, dout = make(Case())
    whole = torch.full((2, 4, 200, 80), 7.0, device=DEVICE, dtype=q.dtype)
    out = whole.transpose(1, 2)[..., 8:72]
    lse = torch.empty(2, 4, 200, device=DEVICE)
    returned = tessera.forward(q, k, v, out=out, lse=lse)
    assert returned[0] is out
    assert returned[1] is lse
    right = tessera.forward(q, k, v)
    assert torch.equal(out, right[0])
    assert (whole[..., :8] == 7).all()
    assert (whole[..., 72:] == 7).all()
    dk = torch.empty_like(k)
    assert tessera.backward(dout, q, k, v, *right, dk=dk).dk is dk


def filled_late(stream: torch.cuda.Stream, q: torch.Tensor) -> torch.Tensor:
    """A copy of q that is written on `stream`, but not soon."""
    late = torch.zeros_like(q)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG_CYCLES)
        late.copy_(q)
    return late


@pytest.mark.parametrize("explicit", [False, True])
def test_the_stream(explicit: bool) -> None:
    q, k, v, dout = make(Case(causal=True))
    right = tessera.forward(q, k, v, causal=True)
    right_grads = tessera.backward(dout, q, k, v, *right, causal=True)
    side = torch.cuda.Stream()
    late = filled_late(side, q)
    if explicit:
        results = tessera.forward(late, k, v, causal=True, stream=side.cuda_stream)
        grads = tessera.backward(dout, late, k, v, *results, causal=True, stream=side.cuda_stream)
    else:
        with torch.cuda.stream(side):
            results = tessera.forward(late, k, v, causal=True)
            grads = tessera.backward(dout, late, k, v, *results, causal=True)
    assert not side.query()  # nothing has waited for it
    side.synchronize()
    assert torch.equal(results[0], right[0])
    assert all(torch.equal(x, y) for x, y in zip(grads[:3], right_grads[:3], strict=True))


def test_memory_of_a_call_is_kept_until_its_kernels_end() -> None:
    """Workspaces go back to torch when a call returns: what is made next must not overwrite them."""
    tensors = make(Case(seq_q=1000, seq_k=1000, causal=True))
    q, k, v, dout = tensors
    out, lse = tessera.forward(q, k, v, causal=True)
    right = tessera.backward(dout, q, k, v, out, lse, causal=True)
    torch.cuda._sleep(LONG_CYCLES)
    grads = []
    for _ in range(5):
        grads.append(tessera.backward(dout, q, k, v, out, lse, causal=True))
        torch.full((2**22,), float("nan"), device=DEVICE)
    for some in grads:
        assert all(torch.equal(x, y) for x, y in zip(some[:3], right[:3], strict=True))


def test_a_captured_graph() -> None:
    case = Case(causal=True)
    q, k, v, dout = make(case)

    def both() -> tuple[torch.Tensor, ...]:
        out, lse = tessera.forward(q, k, v, causal=True)
        return (out, lse, *tessera.backward(dout, q, k, v, out, lse, causal=True)[:3])

    both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    for seed in (2, 3):
        for x, new in zip((q, k, v, dout), make(case, seed), strict=True):
            x.copy_(new)
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(captured, both(), strict=True))


def test_deterministic() -> None:
    case = Case(batch=1, seq_q=2000, seq_k=2000, causal=True)
    tensors = make(case)
    q, k, v, dout = tensors
    out, lse = tessera.forward(q, k, v, causal=True)
    runs = [tessera.backward(dout, q, k, v, out, lse, causal=True) for _ in range(10)]
    for run in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(run[:3], runs[0][:3], strict=True))
    other = tessera.backward(dout, q, k, v, out, lse, causal=True, deterministic=False)
    for x, y in zip(other[:3], runs[0][:3], strict=True):
        assert oracle.relative_error(x, y) <= 2 * ROUNDING[case.dtype]


def test_tensors_of_two_devices() -> None:
    q, k, v, _ = make(Case())
    with pytest.raises(ValueError, match=r"^k device: cpu; accepted: cuda:0, where q is"):
        tessera.forward(q, k.cpu(), v)
    with pytest.raises(ValueError, match=r"^k device: cuda:0; accepted: cpu, where q is"):
        tessera.torch.attention(q.cpu(), k, v)
    with pytest.raises(ValueError, match=r"^lse device: cpu; accepted: cuda:0, where q is"):
        tessera.forward(q, k, v, lse=torch.empty(2, 4, 200))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device alone")
def test_another_device_than_the_current_one() -> None:
    q, k, v, dout = make(Case(causal=True))
    right = tessera.forward(q, k, v, causal=True)
    right_grads = tessera.backward(dout, q, k, v, *right, causal=True)
    q, k, v, dout = (x.to("cuda:1") for x in (q, k, v, dout))
    results = tessera.forward(q, k, v, causal=True)
    grads = tessera.backward(dout, q, k, v, *results, causal=True)
    assert torch.cuda.current_device() == 0
    assert results[0].device.index == 1
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(results, right, strict=True))
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(grads[:3], right_grads[:3], strict=True))


def test_autograd() -> None:
    case = Case(heads_kv=2, causal=True)
    tensors = make(case)
    leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    dlse = torch.randn(case.batch, case.heads_q, case.seq_q, device=DEVICE)
    out, lse = tessera.torch.attention(*leaves, causal=True, return_lse=True)
    found = torch.autograd.grad((out, lse), leaves, (tensors[3], dlse))
    right = expected(case, tensors, dlse)[2]
    for x, y in zip(found, right, strict=True):
        assert oracle.relative_error(x, y) <= 8 * ROUNDING[case.dtype]
    again = tessera.backward(tensors[3], *tensors[:3], out.detach(), lse.detach(), dlse=dlse, causal=True)
    assert all(torch.equal(x, y) for x, y in zip(found, again[:3], strict=True))


def test_compile() -> None:
    leaves = [x.requires_grad_() for x in make(Case(causal=True))[:3]]

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tessera.torch.attention(q * 2, k, v, causal=True).sin()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out, right = compiled(*leaves), block(*leaves)
    torch.testing.assert_close(out, right)
    dout = torch.randn_like(out)
    for x, y in zip(torch.autograd.grad(out, leaves, dout), torch.autograd.grad(right, leaves, dout), strict=True):
        torch.testing.assert_close(x, y)


def test_autocast() -> None:
    q, k, v = (x.float() for x in make(Case())[:3])
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = tessera.torch.attention(q, k, v)
    assert out.dtype == torch.float16
    assert torch.equal(out, tessera.attention(q.half(), k.half(), v.half()))


def test_masks_and_lengths_on_the_gpu() -> None:
    case = Case(seq_q=160, seq_k=160, causal=True)
    q, k, v, _ = make(case)
    right = tessera.attention(q, k, v, causal=True)
    assert torch.equal(tessera.attention(q, k, v, mask=visible(case)[None, None]), right)
    assert torch.equal(tessera.torch.attention(q, k, v, mask=visible(case)), right)

    lengths = torch.tensor([160, 40], device=DEVICE)
    out = tessera.torch.attention(q, k, v, key_lengths=lengths)
    for b, used in enumerate((160, 40)):
        alone = tessera.attention(q[b : b + 1], k[b : b + 1, :used], v[b : b + 1, :used])
        torch.testing.assert_close(out[b : b + 1], alone, rtol=1e-2, atol=1e-2)

    starts = torch.tensor([0, 160, 320], device=DEVICE)
    ragged = tessera.torch.attention(*(x.flatten(0, 1) for x in (q, k, v)), cu_seqlens_q=starts, causal=True)
    torch.testing.assert_close(ragged.unflatten(0, (2, 160)), right, rtol=1e-2, atol=1e-2)


def test_drop_ins() -> None:
    q, k, v, _ = make(Case(seq_q=160, seq_k=160))
    rows = [x.transpose(1, 2) for x in (q, k, v)]
    right = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True)
    out = tessera.torch.scaled_dot_product_attention(*rows, is_causal=True)
    torch.testing.assert_close(out, right, rtol=2e-2, atol=2e-2)

    cache_k, cache_v = (torch.zeros(2, 200, 4, 64, device=DEVICE, dtype=q.dtype) for _ in range(2))
    cached = tessera.torch.flash_attn_with_kvcache(q, cache_k, cache_v, k, v, cache_seqlens=0, causal=True)
    assert torch.equal(cache_k[:, :160], k)
    torch.testing.assert_close(cached.transpose(1, 2), right, rtol=2e-2, atol=2e-2)


BEYOND_HOPPER_KERNELS: dict[str, dict[str, Any]] = {
    "float32": {},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": torch.linspace(-1, 1, 4)},
    "dropout": {"dropout_p": 0.5, "dropout_seed": 3},
}


@pytest.mark.parametrize(("name", "options"), BEYOND_HOPPER_KERNELS.items(), ids=BEYOND_HOPPER_KERNELS.keys())
def test_a_gpu_computes_what_the_cpu_does(name: str, options: dict[str, Any]) -> None:
    q, k, v, _ = make(Case())
    if name == "float32":
        q, k, v = q.float(), k.float(), v.float()
    right, right_lse = tessera.forward(q.cpu(), k.cpu(), v.cpu(), **options)
    moved = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    out, lse = tessera.forward(q, k, v, **moved)
    tolerance = 1e-5 if name == "float32" else 2e-2
    torch.testing.assert_close(out.cpu(), right, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.cpu(), right_lse, rtol=1e-4, atol=1e-4)


def test_what_is_refused_names_the_field() -> None:
    q, k, v, _ = make(Case())
    with pytest.raises(NotImplementedError, match="dtype"):
        tessera.forward(q.double(), k.double(), v.double())
    assert torch.isfinite(tessera.attention(q, k, v)).all()  # everything still works


def test_info_and_explain() -> None:
    devices = tessera.info()["cuda"]["devices"]
    assert len(devices) == torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(0)
    assert devices[0]["name"] == properties.name
    assert devices[0]["capability"] == (properties.major, properties.minor)
    assert devices[0]["multiprocessors"] == properties.multi_processor_count
    q, k, v, _ = make(Case())
    assert "sm90" in tessera.explain(q, k, v, backward=True)
    with pytest.raises(ValueError, match="stream: 5; accepted: None"):
        tessera.torch.attention(q, k, v, stream=5)


def test_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    tensors = make(Case(dtype=torch.float16))
    q, k, v, dout = (cupy.from_dlpack(x) for x in tensors)
    torch.cuda.synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        out, lse = tessera.forward(q, k, v)
        grads = tessera.backward(dout, q, k, v, out, lse)
    stream.synchronize()
    assert isinstance(grads.dq, cupy.ndarray)
    right = tessera.forward(*tensors[:3])
    right_grads = tessera.backward(tensors[3], *tensors[:3], *right)
    for x, y in zip((out, lse, *grads[:3]), (*right, *right_grads[:3]), strict=True):
        assert torch.equal(torch.from_dlpack(x), y)
