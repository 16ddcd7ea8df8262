"""Tessera beside torch's scaled_dot_product_attention: the same tensors, the same device, one process.

On the CPU, both read [batch, seq, heads, dim] tensors of random normal numbers (torch through a transposed view, which
its flash kernel takes as it lies), allocate their outputs in every call, and take turns; the medians are compared.
torch is held to its flash kernel. The forward pass is timed without gradients; the backward pass is timed alone, as
autograd.grad of a retained graph against tessera.backward with out and lse given. Every timed result is checked in the
same run, in two ways: all of it against the other library's, and two heads of it against torch in the next wider dtype,
where Tessera's error must be at most twice torch's plus one rounding.

On a GPU, the same, against torch's backends one by one: cuDNN, FlashAttention-2 and, where its score matrix is not
above 4 GiB, the standard algorithm. Each call is timed on the device, between two events, with the host far enough
ahead (or, with --method graph, without the host); each round has a short batch of every library, in turning order.
Errors are against float32. FLOPs are 4 batch heads seq^2 dim forward, half of it if causal, and 2.5 times that
backward. The rates of a plain matrix product and of a copy are measured in the same run.

With --block-sparse, block masks on a GPU beside torch's compiled FlexAttention (which needs triton and a C compiler),
with FLOPs of the kept blocks, the share of the dense kernel's rate, and the line of time against density. Compiling
FlexAttention takes most of the time: --cases and --passes choose a part, and FILE is written anew after every row. With
--long, 64K tokens under a butterfly mask beside dense attention and what the standard algorithm would take.

With --functions, score functions and a mask function on a GPU, beside the same in FlexAttention and beside Tessera
without the function. The first call's time is that of compiling it, where the cache has it not.

With --sm80, the kernels for every GPU since Ampere beside torch's FlashAttention-2 (bfloat16) and efficient attention
(float32, and TF32). With --programs, the Hopper kernels with ALiBi, softcap, dropout and users' functions beside the
plain ones, and how long each takes to compile. Both say which Impl they ask for, and fail where another one answers.

The exit status is 1 if a result disagrees or Tessera does not compute a case, 2 if a library or the device is missing.

    PYTHONPATH=build/release/python python bench/compare_torch.py --json compare.json
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --deterministic both --json compare.json
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --groups 1 4 --lengths 4096 16384 32768
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --block-sparse --json sparse.json
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --functions --json functions.json
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --sm80 --seconds 0.1 --json sm80.json
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --programs --seconds 0.1
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --block-sparse --cases '*-d128-n65536-*'
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --long
    PYTHONPATH=build/release/python python bench/compare_torch.py --device cuda --decode --method graph
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TORCH_VERSION = "2.13.0"


def missing(what: str, remedy: str) -> int:
    print(f"compare_torch: {what} is not installed for {sys.executable}; {remedy}", file=sys.stderr)
    return 2


try:
    import torch
    from torch.nn.attention import SDPBackend
except ImportError:
    sys.exit(missing("torch", f"pip install torch=={TORCH_VERSION}"))
try:
    import tessera
    from compare import block_sparse, cuda, decode, functions, long_sequence, programs, sm80
    from compare.cases import (
        APART,
        ROUNDING,
        WIDER,
        Case,
        Tensors,
        apart,
        error_of_heads,
        exact,
        torch_attention,
        torch_leaves,
    )
except ImportError:
    sys.exit(missing("tessera", "build it (cmake --preset release && cmake --build build/release) and set PYTHONPATH"))


class CpuDevice:
    """What differs between devices: where tensors live and how a call is timed."""

    name = "cpu"

    def __init__(self, threads: int):
        self.threads = threads or torch.get_num_threads()
        torch.set_num_threads(self.threads)

    def describe(self) -> dict[str, Any]:
        model = "unknown"
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
            model = lines[0].partition(":")[2].strip() if lines else model
        return {
            "device": model,
            "threads": self.threads,
            "torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
            "tessera": f"{tessera.__version__} ({tessera.info()['selected_isa']})",
        }

    def seconds(self, call: Callable[[], Any]) -> float:
        # Each library has its own pool of threads, whose idle ones spin for some milliseconds: let those go to sleep.
        time.sleep(0.02)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class Inputs:
    """The tensors of one case and the four timed calls, which return (out,) or (dq, dk, dv) shaped as the inputs."""

    def __init__(self, case: Case, device: CpuDevice):
        torch.manual_seed(case.seq * 2 + case.causal)
        self.case = case
        self.tensors = tuple(torch.randn(case.shape).to(device.name, getattr(torch, case.dtype)) for _ in range(4))
        self.options = {"causal": case.causal, "threads": device.threads}
        self.leaves = torch_leaves(self.tensors[:3])
        self.graph = torch_attention(*self.leaves, case.causal, SDPBackend.FLASH_ATTENTION)
        self.state = tessera.forward(*self.tensors[:3], **self.options)

    def torch_forward(self) -> Tensors:
        with torch.no_grad():
            out = torch_attention(*self.leaves, self.case.causal, SDPBackend.FLASH_ATTENTION)
        return (out.transpose(1, 2),)

    def torch_backward(self) -> Tensors:
        dout = self.tensors[3].transpose(1, 2)
        gradients = torch.autograd.grad(self.graph, self.leaves, dout, retain_graph=True)
        return tuple(x.transpose(1, 2) for x in gradients)

    def tessera_forward(self) -> Tensors:
        return tessera.forward(*self.tensors[:3], **self.options)[:1]

    def tessera_backward(self) -> Tensors:
        q, k, v, dout = self.tensors
        return tuple(tessera.backward(dout, q, k, v, *self.state, **self.options)[:3])


@dataclass
class Errors:
    """The largest relative errors over the results of one pass."""

    tessera: float  # against the wider dtype
    torch: float
    apart: float  # of the two from each other

    def agree(self, dtype: str) -> bool:
        return self.tessera <= 2 * self.torch + ROUNDING[dtype] and self.apart <= APART[dtype]


def compare_results(inputs: Inputs, backward: bool, ours: Tensors, theirs: Tensors) -> Errors:
    expected = exact(inputs.case, inputs.tensors, backward, SDPBackend.FLASH_ATTENTION)
    errors = (error_of_heads(inputs.case, results, expected) for results in (ours, theirs))
    return Errors(*errors, apart(ours, theirs))


def run_pass(inputs: Inputs, device: CpuDevice, backward: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks one pass of one case, then times the libraries in turn."""
    ours = inputs.tessera_backward if backward else inputs.tessera_forward
    theirs = inputs.torch_backward if backward else inputs.torch_forward
    errors = compare_results(inputs, backward, ours(), theirs())
    once = device.seconds(theirs) + device.seconds(ours)
    rounds = max(arguments.rounds, min(50, int(arguments.seconds / once)))
    torch_times, tessera_times = [], []
    for _ in range(rounds):
        torch_times.append(device.seconds(theirs))
        tessera_times.append(device.seconds(ours))
    case = inputs.case
    torch_seconds, tessera_seconds = statistics.median(torch_times), statistics.median(tessera_times)
    flops = case.flops(backward)
    return {
        **asdict(case),
        "pass": "backward" if backward else "forward",
        "rounds": rounds,
        "torch_ms": torch_seconds * 1e3,
        "tessera_ms": tessera_seconds * 1e3,
        "torch_gflops": flops / torch_seconds / 1e9,
        "tessera_gflops": flops / tessera_seconds / 1e9,
        "ratio": torch_seconds / tessera_seconds,
        "torch_error": errors.torch,
        "tessera_error": errors.tessera,
        "apart": errors.apart,
        "agree": errors.agree(case.dtype),
    }


HEADER = (
    f"{'dtype':8} {'pass':8} {'dim':>3} {'seq':>5} {'mask':6} {'torch ms':>9} {'Tessera ms':>10} {'GFLOP/s':>7} "
    f"{'ratio':>6}  {'torch error':>11} {'Tessera error':>13}"
)


def print_row(row: dict[str, Any]) -> None:
    mask = "causal" if row["causal"] else "dense"
    print(
        f"{row['dtype']:8} {row['pass']:8} {row['dim']:>3} {row['seq']:>5} {mask:6} {row['torch_ms']:>9.2f} "
        f"{row['tessera_ms']:>10.2f} {row['tessera_gflops']:>7.0f} {row['ratio']:>5.2f}x  {row['torch_error']:>11.1e} "
        f"{row['tessera_error']:>13.1e}{'' if row['agree'] else '  DISAGREES'}",
        flush=True,
    )


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric mean and worst case of each (dtype, pass)."""
    summary = []
    for key in sorted({(row["dtype"], row["pass"]) for row in rows}, reverse=True):
        group = [row for row in rows if (row["dtype"], row["pass"]) == key]
        worst = min(group, key=lambda row: row["ratio"])
        summary.append(
            {
                "dtype": key[0],
                "pass": key[1],
                "cases": len(group),
                "geometric_mean": math.exp(statistics.fmean(math.log(row["ratio"]) for row in group)),
                "slower": sum(row["ratio"] < 1 for row in group),
                "worst": worst["ratio"],
                "worst_case": Case(**{name: worst[name] for name in Case.__dataclass_fields__}).name,
            }
        )
    return summary


def print_summary(summary: list[dict[str, Any]]) -> None:
    print(f"\n{'dtype':8} {'pass':8} {'cases':>5} {'geometric mean':>14} {'slower':>6} {'worst':>6}")
    for row in summary:
        print(
            f"{row['dtype']:8} {row['pass']:8} {row['cases']:>5} {row['geometric_mean']:>13.2f}x {row['slower']:>6} "
            f"{row['worst']:>5.2f}x  {row['worst_case']}"
        )


def make_cases(arguments: argparse.Namespace, threads: int) -> list[Case]:
    longest = 2048 if arguments.quick else 8192
    lengths = [n for n in (512, 1024, 2048, 4096, 8192) if n <= longest]
    # At least four heads, and a multiple of the threads, since torch's backward pass splits by batch and head alone.
    heads = arguments.heads or threads * math.ceil(4 / threads)
    cases = [
        Case(dtype, dim, seq, causal, max(1, arguments.tokens // seq), heads)
        for dtype, dim, causal, seq in itertools.product(arguments.dtypes, (64, 128), (False, True), lengths)
    ]
    return [case for case in cases if case.matches(arguments.cases)]


# What differs between devices where it is not given: dtypes, tokens, rounds and seconds, the last with --quick too.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"dtypes": ["float32", "bfloat16"], "tokens": 8192, "rounds": 5, "seconds": 3.0, "quick_seconds": 0.5},
    "cuda": {"dtypes": ["bfloat16"], "tokens": 16384, "rounds": 10, "seconds": 0.5, "quick_seconds": 0.5},
}


# Parts that need a GPU, each in place of the table.
SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "block-sparse": (block_sparse.main, "block masks, beside compiled FlexAttention"),
    "functions": (functions.main, "users' functions, beside compiled FlexAttention"),
    "long": (long_sequence.main, "64K tokens, time and memory of a block mask and of dense attention"),
    "programs": (programs.main, "what ALiBi, softcap, dropout and functions cost, and their compilation"),
    "sm80": (sm80.main, "the kernels for every GPU since Ampere, beside FlashAttention-2 and efficient attention"),
}


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}'; accepted: integers of 1 or more")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=sorted(DEFAULTS), default="cpu")
    add("--threads", type=int, default=0, help="on the CPU, of both libraries; 0: torch's default (%(default)s)")
    add("--dtypes", nargs="+", choices=sorted(WIDER), help="(float32 bfloat16; on a GPU bfloat16)")
    add("--cases", nargs="+", default=["*"], metavar="GLOB", help="names like bfloat16-d64-n512-causal")
    add("--passes", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    add("--tokens", type=int, help="batch * seq, where seq is not longer (8192; on a GPU 16384)")
    add("--heads", type=int, default=0, help="0: four or more, a multiple of the threads; on a GPU 2048 / dim")
    add("--seconds", type=float, help="time for each pass of each case (3, 0.5 with --quick; on a GPU 0.5)")
    add("--rounds", type=int, help="least number of rounds, whatever the time (5; on a GPU 10)")
    for name, (_, about) in SECTIONS.items():
        add(f"--{name}", action="store_true", help=f"on a GPU: {about}")
    add("--no-lines", action="store_true", help="with --block-sparse: without the lines of time against density")
    add("--quick", action="store_true", help="lengths up to 2048 and little time; on a GPU lengths 512, 4096 and 16384")
    add("--lengths", nargs="+", type=positive, metavar="N", help="on a GPU: tokens of a sequence (512 to 16384)")
    add("--groups", nargs="+", type=positive, default=[1], metavar="N", help="on a GPU: query heads of a key head (1)")
    add("--method", choices=("events", "graph"), default="events", help="on a GPU: calls, or CUDA graphs of them")
    add("--deterministic", choices=("on", "off", "both"), default="on", help="on a GPU: Tessera's backward pass")
    add("--decode", action="store_true", help="on a GPU: few queries over many keys, as shares of the rate of a copy")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    arguments = parser.parse_args()
    chosen = [f"--{name}" for name in (*SECTIONS, "decode") if getattr(arguments, name.replace("-", "_"))]
    if len(chosen) > 1:
        parser.error(f"{', '.join(chosen)}; accepted: one of them")
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        parser.error(f"--json: {arguments.json}; accepted: a file in a folder that exists")
    if arguments.decode:
        arguments.device = cuda.gpu.CudaDevice.name
    defaults = DEFAULTS[arguments.device]
    for name in ("dtypes", "tokens", "rounds"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, defaults[name])
    if arguments.seconds is None:
        arguments.seconds = defaults["quick_seconds" if arguments.quick else "seconds"]
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.decode:
        return decode.main(arguments)
    section = next((name for name in SECTIONS if getattr(arguments, name.replace("-", "_"))), None)
    if arguments.device == cuda.gpu.CudaDevice.name:
        return (SECTIONS[section][0] if section else cuda.main)(arguments)
    if section:
        print(f"compare_torch: --{section} needs --device cuda; on the CPU see tessera bench", file=sys.stderr)
        return 2
    device = CpuDevice(arguments.threads)
    cases = make_cases(arguments, device.threads)
    if not cases:
        print(f"compare_torch: no case has a name like {' '.join(arguments.cases)}", file=sys.stderr)
        return 2
    environment = device.describe()
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    if torch.__version__.partition("+")[0] != TORCH_VERSION:
        print(f"note: the published figures are against torch {TORCH_VERSION}")
    print(
        f"{arguments.tokens} tokens, {cases[0].heads} heads, medians of {arguments.rounds} rounds or more\n\n{HEADER}"
    )
    rows = []
    for case in cases:
        inputs = Inputs(case, device)
        for name in arguments.passes:
            rows.append(run_pass(inputs, device, name == "backward", arguments))
            print_row(rows[-1])
    summary = summarise(rows)
    print_summary(summary)
    disagreements = [row for row in rows if not row["agree"]]
    if arguments.json:
        record = {"environment": environment, "summary": summary, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if disagreements:
        print(f"\n{len(disagreements)} results disagree", file=sys.stderr)
    return 1 if disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
