"""One causal sequence over the GPUs (or CPU ranks) of a machine, beside torch's context_parallel.

Each cell is one `tessera bench --distributed` run of a schedule and layout, in which one rank alone has the whole
sequence once per shape: shares are of that kernel's rate in the same run. torch is timed on the same GPUs by
bench/compare/context_parallel.py, with cuDNN and each rotate method. FLOPs are 4 heads seq^2 dim forward, half of it
since causal, and 2.5 times that backward.

    python bench/scaling.py --tessera build/release/bin/tessera --ranks 2 --json scaling.json --plot scaling.png
    python bench/scaling.py --tessera build/release/bin/tessera --ranks 4 --device cpu --tokens 1K --heads 4:4 --dim 64
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "compare" / "context_parallel.py"
PASSES = ("forward", "backward")


@dataclass
class Cell:
    """One way to compute one shape."""

    name: str  # "ring zigzag", "torch allgather"
    tokens: int  # of each rank
    heads: str
    seconds: dict[str, float]  # by pass; torch's backward pass is that of its forward+backward
    alone: dict[str, float] | None = None  # of one rank that has the whole sequence
    hidden: dict[str, float] | None = None
    bytes_sent: dict[str, int] | None = None  # by the rank that sends most
    memory_bytes: int | None = None  # the most that a rank holds besides its tensors, or of torch, in all
    predicted: dict[str, float] | None = None


def flops(options: argparse.Namespace, cell: Cell, both: bool) -> float:
    seq = cell.tokens * options.ranks
    forward = 2.0 * int(cell.heads.split(":")[0]) * seq * seq * options.dim
    return forward * (3.5 if both else 1.0)


def rate(options: argparse.Namespace, cell: Cell, both: bool) -> float:
    """FLOP/s of a rank."""
    seconds = sum(cell.seconds.values()) if both else cell.seconds["forward"]
    return flops(options, cell, both) / seconds / options.ranks


def share(cell: Cell, options: argparse.Namespace, both: bool) -> float | None:
    if cell.alone is None:
        return None
    alone = sum(cell.alone.values()) if both else cell.alone["forward"]
    return alone / options.ranks / (sum(cell.seconds.values()) if both else cell.seconds["forward"])


def launcher(options: argparse.Namespace) -> list[str]:
    if options.transport == "local":
        return []
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["mpirun", *root, "--oversubscribe", "-n", str(options.ranks)]


def run(command: list[str], timeout: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        words = done.stdout[-1000:] + done.stderr[-2000:]
        sys.exit(f"scaling: {' '.join(command)} ended with {done.returncode}\n{words}")


def shape_flags(options: argparse.Namespace, heads: str, tokens: int) -> list[str]:
    queries, keys = heads.split(":")
    return [
        *("--seq", str(tokens * options.ranks), "--heads", queries, "--kv-heads", keys, "--dim", str(options.dim)),
        *("--mask", "causal", "--dtype", options.dtype),
    ]


def measure(options: argparse.Namespace, schedule: str, layout: str, heads: str, tokens: int, alone: bool) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [*launcher(options), options.tessera, "bench", "--distributed", schedule, "--layout", layout]
        command += [*shape_flags(options, heads, tokens), "--device", options.device]
        command += ["--min-time", str(options.min_time), "--json", str(figures), *([] if alone else ["--no-baseline"])]
        if options.transport == "local":
            command += ["--ranks", str(options.ranks)]
        elif options.device != "cpu":
            command += ["--transport", options.transport]
        if options.ranks_per_node:
            command += ["--ranks-per-node", str(options.ranks_per_node)]
        if options.device == "cpu":
            command += ["--threads", str(options.threads)]
        run(command, options.timeout)
        document = json.loads(figures.read_text())
        predicted = predict(options, figures, schedule, layout, heads, tokens)
    points = {point["pass"]: point for point in document["points"]}
    most = {name: max(rank["bytes_sent"] for rank in points[name]["ranks"]) for name in PASSES}
    return Cell(
        f"{schedule} {layout}",
        tokens,
        heads,
        {name: points[name]["seconds"] for name in PASSES},
        {name: points[name]["one_rank_seconds"] for name in PASSES} if alone else None,
        {name: min(rank["share_hidden"] for rank in points[name]["ranks"]) for name in PASSES},
        most,
        max(points[name]["memory_bytes"] for name in PASSES),
        predicted,
    )


def predict(
    options: argparse.Namespace, figures: Path, schedule: str, layout: str, heads: str, tokens: int
) -> dict[str, float] | None:
    """The planner's seconds, from the rates that the cell itself measured."""
    nodes = options.ranks // options.ranks_per_node if options.ranks_per_node else 1
    target = figures.with_name("plan.json")
    command = [options.tessera, "plan", "--gpus", str(options.ranks), "--nodes", str(nodes), "--measured", str(figures)]
    run([*command, *shape_flags(options, heads, tokens), "--json", str(target)], options.timeout)
    rows = json.loads(target.read_text())["predictions"]
    found = {}
    for name in PASSES:
        wanted = "ring" if schedule == "burst" and name == "forward" else schedule
        for row in rows:
            if (row["pass"], row["schedule"], row["layout"]) == (name, wanted, layout):
                found[name] = row["seconds"]
    return found if len(found) == len(PASSES) else None


def measure_torch(options: argparse.Namespace) -> list[Cell]:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "torch.json"
        command = [options.python, str(WORKER), "--ranks", str(options.ranks), "--dim", str(options.dim)]
        command += ["--dtype", options.dtype, "--min-time", str(options.min_time), "--json", str(figures)]
        command += ["--tokens", ",".join(map(str, options.tokens)), "--heads", ",".join(options.heads)]
        run(command, options.timeout * 4)
        return [Cell(**cell) for cell in json.loads(figures.read_text())]


def print_table(options: argparse.Namespace, cells: list[Cell]) -> None:
    scale, unit = (1e12, "TFLOP/s") if options.device != "cpu" else (1e9, "GFLOP/s")
    print(f"\n{options.ranks} ranks, {options.transport}: {unit} a rank, forward / forward+backward")
    columns = ("tokens", "heads", "", "rate", "share", "hidden", "sent MiB", "memory MiB", "predicted")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def pair(first: Any, second: Any, form: str) -> str:
        return "" if first is None else f"{first:{form}} / {second:{form}}"

    for cell in cells:
        hidden = cell.hidden or {}
        sent = cell.bytes_sent or {}
        ratio = [None, None]
        if cell.predicted:
            both = (cell.predicted["forward"], sum(cell.predicted.values()))
            ratio = [both[0] / cell.seconds["forward"], both[1] / sum(cell.seconds.values())]
        row = [
            str(cell.tokens),
            cell.heads,
            cell.name,
            pair(rate(options, cell, False) / scale, rate(options, cell, True) / scale, ".0f"),
            pair(share(cell, options, False), share(cell, options, True), ".1%"),
            pair(hidden.get("forward"), hidden.get("backward"), ".0%"),
            pair(sent["forward"] / 2**20, sent["backward"] / 2**20, ".0f") if sent else "",
            "" if cell.memory_bytes is None else f"{cell.memory_bytes / 2**20:.0f}",
            pair(*ratio, ".2f"),
        ]
        print("| " + " | ".join(row) + " |", flush=True)


def draw(options: argparse.Namespace, cells: list[Cell]) -> None:
    """Rates of forward+backward over tokens, a line for each way."""
    if shutil.which("gnuplot") is None:
        print("scaling: no plot, since gnuplot is not installed", file=sys.stderr)
        return
    heads = options.heads[0]
    names = list(dict.fromkeys(cell.name for cell in cells if cell.heads == heads))
    blocks = []
    for name in names:
        rows = [cell for cell in cells if cell.name == name and cell.heads == heads]
        blocks.append("\n".join(f"{cell.tokens} {rate(options, cell, True) / 1e12}" for cell in rows) + "\ne")
    terminal = "svg" if options.plot.endswith(".svg") else "pngcairo"
    lines = ", ".join(f"'-' with linespoints title '{name}'" for name in names)
    script = f"set terminal {terminal} size 900,600\nset output '{options.plot}'\nset logscale x 2\nset yrange [0:*]\n"
    script += f"set xlabel 'tokens of a rank'\nset ylabel 'TFLOP/s of a rank, forward+backward, heads {heads}'\n"
    script += f"set key bottom right\nplot {lines}\n" + "\n".join(blocks) + "\n"
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def numbers(text: str) -> list[int]:
    scales = {"K": 1024, "M": 1024 * 1024}
    return [int(part.rstrip("KM")) * scales.get(part[-1], 1) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", required=True, help="the command line tool")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--transport", default="local", choices=("local", "nccl", "host"), help="local: threads")
    parser.add_argument("--tokens", type=numbers, default=numbers("8K,16K,32K,64K"), help="of a rank")
    parser.add_argument("--heads", type=lambda text: text.split(","), default=["32:32", "32:8"])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", help="bfloat16 on GPUs, else float32")
    parser.add_argument("--schedules", type=lambda text: text.split(","), default=["ring", "burst"])
    parser.add_argument("--layouts", type=lambda text: text.split(","), default=["zigzag", "striped", "contiguous"])
    parser.add_argument("--ranks-per-node", type=int, default=0, help="for the schedule double_ring")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU rank")
    parser.add_argument("--min-time", type=float, default=0.3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, help="beside torch [on GPUs]")
    parser.add_argument("--python", default=sys.executable, help="one that has torch")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    with_torch = options.device != "cpu" if options.torch is None else options.torch
    cells = []
    for heads in options.heads:
        for tokens in options.tokens:
            alone = None
            for schedule in options.schedules:
                for layout in options.layouts:
                    cell = measure(options, schedule, layout, heads, tokens, alone is None)
                    alone = cell.alone = cell.alone or alone
                    cells.append(cell)
    if with_torch:
        cells += measure_torch(options)
    print_table(options, cells)
    if options.json:
        document = {key: value for key, value in vars(options).items() if key not in ("json", "plot", "python")}
        document["cells"] = [asdict(cell) for cell in cells]
        Path(options.json).write_text(json.dumps(document, indent=2) + "\n")
    if options.plot:
        draw(options, cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
