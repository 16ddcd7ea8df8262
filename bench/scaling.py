"""One causal sequence over the GPUs (or CPU ranks) of a machine, beside torch's context_parallel.

Each cell is one schedule and layout at one length. Shares are of the same kernel on one GPU that has the whole
sequence, timed in the same run on all GPUs at once, of which the slowest counts, up to --alone tokens; beyond, of its
rate at the longest of those. Predictions are the
planner's, from kernels, links and sums that were timed alone. torch is timed on the same GPUs by
bench/compare/context_parallel.py, with cuDNN and each rotate method. FLOPs are 4 heads seq^2 dim forward, half of it
since causal, and 2.5 times that backward.

A cell that fails is reported and does not stop the others; --json is written after each group of cells; --seconds
bounds the whole run, and what was not reached is listed. The most important cells come first.

    python bench/scaling.py --tessera build/release/bin/tessera --ranks 2 --json scaling.json --plot scaling.png
    python bench/scaling.py --tessera build/release/bin/tessera --ranks 8 --ranks-per-node 4 --longest
    python bench/scaling.py --tessera build/release/bin/tessera --ranks 4 --preset small
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling_figures import PASSES, Cell, Figures

WORKER = Path(__file__).parent / "compare" / "context_parallel.py"
PRESETS: dict[str, dict[str, Any]] = {
    # Some seconds on the CPU, with every schedule and layout.
    "small": {
        "device": "cpu",
        "tokens": [64, 128],
        "heads": ["4:4", "4:1"],
        "dim": 16,
        "min_time": 0.002,
        "alone": 256,
    },
}


@dataclass
class Group:
    """Cells of one process."""

    schedule: str
    layout: str
    heads: str
    tokens: list[int]
    passes: tuple[str, ...] = PASSES
    alone: bool = False  # times one rank that has the whole sequence, and what predictions need

    @property
    def name(self) -> str:
        return f"{self.schedule} {self.layout}"


class CommandError(Exception):
    """One line that says what went wrong."""


class Scaling(Figures):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.start = time.monotonic()
        self.gpus = names_of_gpus() if options.device != "cpu" else ""
        self.rates: dict[str, Any] = {}  # by heads: what the planner is given

    # --- what is run ---

    def left(self) -> float:
        seconds = float(self.options.seconds)
        return seconds - (time.monotonic() - self.start) if seconds else math.inf

    def groups(self) -> list[Group]:
        options = self.options
        all_groups: list[Group] = []
        for layout in options.layouts:
            for schedule in options.schedules:
                for heads in options.heads:
                    leading = layout == options.layouts[0] and schedule == options.schedules[0]
                    # The forward pass of burst is that of ring.
                    passes = ("backward",) if schedule == "burst" and "ring" in options.schedules else PASSES
                    near = [n for n in options.tokens if leading and n * options.ranks <= options.alone]
                    far = [n for n in options.tokens if n not in near]
                    all_groups += [Group(schedule, layout, heads, near, passes, True)] if near else []
                    all_groups += [Group(schedule, layout, heads, far, passes)] if far else []
        return all_groups

    def run(self) -> None:
        with_torch = self.options.device != "cpu" if self.options.torch is None else self.options.torch
        first_layout = self.options.layouts[0]
        groups = self.groups()
        for group in [group for group in groups if group.layout == first_layout]:
            self.measure(group)
        if with_torch:
            self.measure_torch()
        for group in [group for group in groups if group.layout != first_layout]:
            self.measure(group)
        if self.options.longest:
            self.find_longest()
        self.write()

    def measure(self, group: Group) -> None:
        """All lengths at once; where that fails, those that are missing one by one."""
        missing = self.try_group(group)
        if missing and len(group.tokens) > 1 and self.left() > 0:
            for tokens in missing:
                self.try_group(Group(group.schedule, group.layout, group.heads, [tokens], group.passes, group.alone))
        self.write()

    def try_group(self, group: Group) -> list[int]:
        problem = ""
        points: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "figures.json"
            if self.left() <= 0:
                problem = "not run: out of time"
            else:
                try:
                    self.command(self.bench_command(group, figures), self.options.timeout)
                except CommandError as failure:
                    problem = str(failure)
            if figures.exists():  # the points until a failure are there
                document = json.loads(figures.read_text())
                points = document["points"]
                if group.alone:
                    self.keep_rates(group, document)
        missing = []
        for tokens in group.tokens:
            cell = self.cell(group, tokens)
            for point in points:
                if point["seq_q"] == tokens * self.options.ranks:
                    self.keep_point(cell, point)
            cell.problem = "" if all(name in cell.seconds for name in group.passes) else problem or "no figures"
            if cell.problem:
                missing.append(tokens)
        self.predict(group)
        return missing

    def cell(self, group: Group, tokens: int) -> Cell:
        for cell in self.cells:
            if (cell.name, cell.tokens, cell.heads) == (group.name, tokens, group.heads):
                return cell
        cell = Cell(group.name, tokens, group.heads)
        if "forward" not in group.passes:
            ring = (f"ring {group.layout}", tokens, group.heads)
            for other in self.cells:
                if (other.name, other.tokens, other.heads) == ring:
                    for figures in ("seconds", "hidden", "bytes_sent", "held_bytes"):
                        of_ring = getattr(other, figures)
                        getattr(cell, figures).update({"forward": of_ring["forward"]} if "forward" in of_ring else {})
        self.cells.append(cell)
        return cell

    @staticmethod
    def keep_point(cell: Cell, point: dict[str, Any]) -> None:
        name = point["pass"]
        cell.seconds[name] = point["seconds"]
        cell.hidden[name] = min(rank["share_hidden"] for rank in point["ranks"])
        cell.bytes_sent[name] = max(rank["bytes_sent"] for rank in point["ranks"])
        cell.held_bytes[name] = point["memory_bytes"] + point["tensor_bytes"]

    def keep_rates(self, group: Group, document: dict[str, Any]) -> None:
        known = self.rates.setdefault(group.heads, document["rates"])
        if known is not document["rates"]:
            for name in PASSES:
                known[name] += document["rates"][name]
        for point in document["points"]:
            for rates, seconds in (
                (self.alone, point["one_rank_seconds"]),
                (self.alone_fastest, point["one_rank_fastest_seconds"]),
            ):
                if seconds > 0:
                    flops = self.flops(group.heads, point["seq_q"], point["pass"])
                    rates.setdefault(group.heads, {}).setdefault(point["pass"], {})[point["seq_q"]] = flops / seconds

    def find_longest(self) -> None:
        """Twice as many tokens until they do not fit; one figure each."""
        options = self.options
        for heads in options.heads:
            tokens = max(options.tokens)
            while self.left() > 0:
                tokens *= 2
                group = Group(options.schedules[0], options.layouts[0], heads, [tokens])
                if self.try_group(group):
                    break
                self.write()

    # --- commands ---

    def command(self, words: list[str], timeout: float) -> str:
        """Its output. Its whole process group ends with it, mpirun's ranks too."""
        limit = min(timeout, self.left())
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                raise CommandError("ran out of time" if limit < timeout else f"no end after {timeout:g} s") from None
        if process.returncode != 0:
            lines = (
                [line for line in output.splitlines() if "rror" in line] or output.splitlines()[-1:] or ["no output"]
            )
            raise CommandError(f"status {process.returncode}: {lines[0].strip()[:300]}")
        return output

    def shape_flags(self, heads: str, totals: list[int]) -> list[str]:
        queries, _, keys = heads.partition(":")
        return [
            *("--seqs" if len(totals) > 1 else "--seq", ",".join(map(str, totals))),
            *("--heads", queries, "--kv-heads", keys or queries, "--dim", str(self.options.dim)),
            *("--mask", "causal", "--dtype", self.options.dtype),
        ]

    def bench_command(self, group: Group, figures: Path) -> list[str]:
        options = self.options
        words = [options.tessera, "bench", "--distributed", group.schedule, "--layout", group.layout]
        words += self.shape_flags(group.heads, [tokens * options.ranks for tokens in group.tokens])
        words += ["--device", options.device, "--min-time", str(options.min_time), "--json", str(figures)]
        words += ["--pass", group.passes[0]] if len(group.passes) == 1 else []
        words += [] if group.alone else ["--no-baseline"]
        words += ["--ranks-per-node", str(options.ranks_per_node)] if group.schedule == "double_ring" else []
        words += ["--threads", str(options.threads)] if options.device == "cpu" else []
        if options.transport == "local":
            return [*words, "--ranks", str(options.ranks)]
        words += ["--transport", options.transport] if options.transport != "mpi" else []
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        return ["mpirun", *root, "--oversubscribe", "-n", str(options.ranks), *words]

    def predict(self, group: Group) -> None:
        """The planner's seconds, from what was timed alone."""
        if group.heads not in self.rates:
            return
        options = self.options
        nodes = options.ranks // options.ranks_per_node if group.schedule == "double_ring" else 1
        for tokens in group.tokens:
            with tempfile.TemporaryDirectory() as folder:
                measured, target = Path(folder) / "measured.json", Path(folder) / "plan.json"
                measured.write_text(json.dumps({"rates": self.rates[group.heads]}))
                words = [options.tessera, "plan", "--gpus", str(options.ranks), "--nodes", str(nodes)]
                words += ["--measured", str(measured), *self.shape_flags(group.heads, [tokens * options.ranks])]
                try:
                    self.command([*words, "--json", str(target)], options.timeout)
                except CommandError as failure:
                    print(f"scaling: no prediction: {failure}", file=sys.stderr)
                    return
                rows = json.loads(target.read_text())["predictions"]
            cell = self.cell(group, tokens)
            for row in rows:
                wanted = "ring" if (group.schedule, row["pass"]) == ("burst", "forward") else group.schedule
                if (row["schedule"], row["layout"]) == (wanted, group.layout):
                    cell.predicted[row["pass"]] = row["seconds"]

    def measure_torch(self) -> None:
        options = self.options
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "torch.json"
            words = [options.python, str(WORKER), "--ranks", str(options.ranks), "--dim", str(options.dim)]
            words += ["--dtype", options.dtype, "--min-time", str(options.min_time), "--json", str(figures)]
            words += ["--tokens", ",".join(map(str, options.tokens)), "--heads", ",".join(options.heads)]
            try:
                if self.left() <= 0:
                    raise CommandError("not run: out of time")
                self.command(words, options.timeout)
            except CommandError as failure:
                self.torch_problem = f"torch: {failure}"
                print(f"scaling: {self.torch_problem}", file=sys.stderr)
            if figures.exists():  # written after each cell
                self.cells += [Cell(**cell) for cell in json.loads(figures.read_text())]
        self.write()

    def write(self) -> None:
        if not self.options.json:
            return
        skipped = ("json", "plot", "python")
        document = {key: value for key, value in vars(self.options).items() if key not in skipped}
        document["gpus"] = self.gpus
        document["alone_flops_per_second"] = self.alone
        document["alone_fastest_flops_per_second"] = self.alone_fastest
        document["rates"] = self.rates
        document["torch_problem"] = self.torch_problem
        document["cells"] = [
            asdict(cell)
            | {
                "flops_per_second": {"forward": self.rate(cell, False), "both": self.rate(cell, True)},
                "share": {"forward": self.share(cell, False), "both": self.share(cell, True)},
            }
            for cell in self.cells
        ]
        target = Path(self.options.json)
        draft = target.with_name(target.name + ".part")
        draft.write_text(json.dumps(document, indent=2) + "\n")
        draft.replace(target)


def names_of_gpus() -> str:
    """For example "4 NVIDIA H200"."""
    if shutil.which("nvidia-smi") is None:
        return ""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())


def numbers(text: str) -> list[int]:
    scales = {"K": 1024, "M": 1024 * 1024}
    return [int(part.rstrip("KM")) * scales.get(part[-1], 1) for part in text.split(",")]


def words(text: str) -> list[str]:
    return text.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", required=True, help="the command line tool")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="defaults for a short run")
    parser.add_argument("--device", default="cuda", help="cuda or cpu [cuda]")
    parser.add_argument(
        "--transport",
        default="local",
        choices=("local", "mpi", "copy", "nccl", "host"),
        help="local: threads; mpi: processes, on GPUs the default between them",
    )
    parser.add_argument("--tokens", type=numbers, default=numbers("8K,16K,32K,64K"), help="of a rank")
    parser.add_argument("--heads", type=words, default=["32:32", "32:8"])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", help="bfloat16 on GPUs, else float32")
    parser.add_argument("--schedules", type=words, help="ring, burst and, from 4 ranks on, double_ring")
    parser.add_argument("--layouts", type=words, default=["zigzag", "striped", "contiguous"])
    parser.add_argument("--ranks-per-node", type=int, default=0, help="of the double ring [half of the ranks]")
    parser.add_argument("--alone", type=int, default=128 * 1024, help="most tokens that one rank alone is timed with")
    parser.add_argument("--longest", action="store_true", help="then double the tokens until they do not fit")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU rank")
    parser.add_argument("--min-time", type=float, default=0.3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one process")
    parser.add_argument("--seconds", type=float, default=0, help="of the whole run [no bound]")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, help="beside torch [on GPUs]")
    parser.add_argument("--python", default=sys.executable, help="one that has torch")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    given, _ = parser.parse_known_args()
    parser.set_defaults(**PRESETS.get(given.preset, {}))
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.ranks_per_node = options.ranks_per_node or max(1, options.ranks // 2)
    double = ["double_ring"] if options.ranks >= 4 and options.ranks % options.ranks_per_node == 0 else []
    options.schedules = options.schedules or ["ring", "burst", *double]
    return options


def main() -> int:
    options = parse()
    scaling = Scaling(options)
    scaling.run()
    scaling.print_table()
    scaling.print_summary()
    if options.plot:
        scaling.draw()
    return 0 if any(cell.seconds for cell in scaling.cells) else 1


if __name__ == "__main__":
    sys.exit(main())
