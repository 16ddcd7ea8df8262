"""What bench/scaling.py says of its cells: rates, shares, the table and the plot."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PASSES = ("forward", "backward")


@dataclass
class Cell:
    """One way to compute one shape."""

    name: str  # "ring zigzag", "torch allgather"
    tokens: int  # of each rank
    heads: str
    seconds: dict[str, float] = field(default_factory=dict)  # by pass; torch's backward: both passes less the forward
    hidden: dict[str, float] = field(default_factory=dict)  # the least of all ranks
    bytes_sent: dict[str, int] = field(default_factory=dict)  # by the rank that sends most
    held_bytes: dict[str, int] = field(default_factory=dict)  # by a rank, its tensors included
    predicted: dict[str, float] = field(default_factory=dict)  # seconds
    problem: str = ""  # why there is nothing, or not all of it


def texts(values: Iterable[float | None], form: str, unit: float = 1) -> str:
    """Those of the passes, "-" for one that is not there; nothing for none."""
    all_texts = ["-" if value is None else f"{value / unit:{form}}" for value in values]
    return "" if set(all_texts) == {"-"} else " / ".join(all_texts)


class Figures:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cells: list[Cell] = []
        self.torch_problem = ""
        self.gpus = ""  # of the machine
        # FLOP/s of one rank alone, by heads, pass and tokens in all: of the slowest GPU and, beside it, the fastest.
        self.alone: dict[str, dict[str, dict[int, float]]] = {}
        self.alone_fastest: dict[str, dict[str, dict[int, float]]] = {}

    def flops(self, heads: str, total: int, name: str) -> float:
        forward = 2.0 * int(heads.split(":")[0]) * total * total * float(self.options.dim)
        return forward * {"forward": 1.0, "backward": 2.5, "both": 3.5}[name]

    def rate(self, cell: Cell, both: bool) -> float | None:
        """FLOP/s of a rank."""
        names = PASSES if both else PASSES[:1]
        if not all(name in cell.seconds for name in names):
            return None
        flops = self.flops(cell.heads, cell.tokens * self.options.ranks, "both" if both else "forward")
        return flops / sum(cell.seconds[name] for name in names) / int(self.options.ranks)

    def rate_alone(self, cell: Cell, both: bool) -> float | None:
        """At the same length in all or, where that was not timed, the longest."""
        seconds = 0.0
        for name in PASSES if both else PASSES[:1]:
            timed = self.alone.get(cell.heads, {}).get(name, {})
            if not timed:
                return None
            seconds += self.flops(cell.heads, 1, name) / timed.get(cell.tokens * self.options.ranks, timed[max(timed)])
        return self.flops(cell.heads, 1, "both" if both else "forward") / seconds

    def share(self, cell: Cell, both: bool) -> float | None:
        rate, alone = self.rate(cell, both), self.rate_alone(cell, both)
        return None if rate is None or alone is None else rate / alone

    def prediction_ratio(self, cell: Cell, name: str) -> float | None:
        return cell.predicted[name] / cell.seconds[name] if name in cell.predicted and name in cell.seconds else None

    def print_table(self) -> None:
        options = self.options
        scale, unit, form = self.unit()
        devices = f", on a machine with {self.gpus}" if self.gpus else ""
        print(f"\n{options.ranks} ranks, {options.transport}, {options.dtype}, dim {options.dim}{devices}")
        print(
            f"rate: {unit} of a rank, and share: of one rank alone, forward / forward+backward; the others: forward /\n"
            "backward pass; held: bytes of a rank with its tensors; predicted: the planner's time over the measured\n"
        )
        columns = ("tokens", "heads", "", "rate", "share", "hidden", "sent MiB", "held MiB", "predicted")
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

        def by_pass(values: dict[str, Any], form: str, unit: float = 1) -> str:
            return texts((values.get(name) for name in PASSES), form, unit)

        order = {name: n for n, name in enumerate(dict.fromkeys(cell.name for cell in self.cells))}
        for cell in sorted(self.cells, key=lambda c: (options.heads.index(c.heads), c.tokens, order[c.name])):
            row = [
                str(cell.tokens),
                cell.heads,
                cell.name,
                texts((self.rate(cell, both) for both in (False, True)), form, scale),
                texts((self.share(cell, both) for both in (False, True)), ".1%"),
                by_pass(cell.hidden, ".0%"),
                by_pass(cell.bytes_sent, ".1f", 2**20),
                by_pass(cell.held_bytes, ".0f", 2**20),
                texts((self.prediction_ratio(cell, name) for name in PASSES), ".2f"),
            ]
            print("| " + " | ".join(row) + " |")
        print(
            "\none rank alone with the whole sequence, forward / backward (all GPUs at once: the slowest, the fastest):"
        )
        for heads, by_name in self.alone.items():
            for total in sorted(set().union(*by_name.values())):
                pairs = [
                    texts((rates[heads].get(name, {}).get(total) for name in PASSES), ".0f", scale)
                    for rates in (self.alone, self.alone_fastest)
                ]
                print(f"  {total} tokens, {heads}: {', '.join(pairs)} {unit}")
        problems = [f"{cell.tokens} {cell.heads} {cell.name}: {cell.problem}" for cell in self.cells if cell.problem]
        print("\n".join(["", *problems, self.torch_problem]).rstrip(), flush=True)

    def print_summary(self) -> None:
        """A row for each length: the schedules in the first layout beside one rank alone and torch's better way."""
        options = self.options
        scale, unit, form = self.unit()
        both = (False, True)
        by_place = {(cell.heads, cell.tokens, cell.name): cell for cell in self.cells}
        schedules = [f"{schedule} {options.layouts[0]}" for schedule in options.schedules]
        ways = ["torch allgather", "torch alltoall"]

        def best(heads: str, tokens: int, names: list[str]) -> list[float | None]:
            cells = [by_place[key] for key in ((heads, tokens, name) for name in names) if key in by_place]
            rates = [[rate for cell in cells if (rate := self.rate(cell, one)) is not None] for one in both]
            return [max(some, default=None) for some in rates]

        print(f"\n{unit} of a rank (share of one alone), forward / forward+backward\n")
        columns = ("heads", "tokens", "one alone", *schedules, "torch, better way", "best / torch")
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        for heads in options.heads:
            for tokens in options.tokens:
                whole = [self.rate_alone(Cell("", tokens, heads), one) for one in both]
                row = [heads, f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens), texts(whole, form, scale)]
                for name in schedules:
                    cell = by_place.get((heads, tokens, name), Cell(name, tokens, heads))
                    rates = texts((self.rate(cell, one) for one in both), form, scale)
                    shares = texts((self.share(cell, one) for one in both), ".0f", 0.01)
                    row.append(f"{rates} ({shares} %)" if shares else rates)
                ours, theirs = best(heads, tokens, schedules), best(heads, tokens, ways)
                ratios = (a / b if a and b else None for a, b in zip(ours, theirs, strict=True))
                row += [texts(theirs, form, scale), texts(ratios, ".2f")]
                print("| " + " | ".join(row) + " |")
        ratios = [self.prediction_ratio(cell, name) for cell in self.cells for name in PASSES]
        known = [ratio for ratio in ratios if ratio is not None]
        if known:
            print(f"\npredicted over measured: {min(known):.2f} to {max(known):.2f} in {len(known)} passes", flush=True)

    def unit(self) -> tuple[float, str, str]:
        """Of rates, and how they are written."""
        return (1e12, "TFLOP/s", ".0f") if self.options.device != "cpu" else (1e9, "GFLOP/s", ".1f")

    def draw(self) -> None:
        """Rates of forward+backward over tokens, a line for each way."""
        options = self.options
        if shutil.which("gnuplot") is None:
            print("scaling: no plot, since gnuplot is not installed", file=sys.stderr)
            return
        heads = options.heads[0]
        lines: dict[str, list[str]] = {}
        for cell in sorted(self.cells, key=lambda c: c.tokens):
            rate = self.rate(cell, True)
            if cell.heads == heads and rate is not None:
                lines.setdefault(cell.name, []).append(f"{cell.tokens} {rate / 1e12}")
        if not lines:
            return
        terminal = "svg" if options.plot.endswith(".svg") else "pngcairo"
        script = f"set terminal {terminal} size 900,600\nset output '{options.plot}'\nset logscale x 2\n"
        script += "set yrange [0:*]\nset xlabel 'tokens of a rank'\nset key bottom right\n"
        script += f"set ylabel 'TFLOP/s of a rank, forward+backward, heads {heads}'\n"
        script += "plot " + ", ".join(f"'-' with linespoints title '{name}'" for name in lines) + "\n"
        script += "".join("\n".join(rows) + "\ne\n" for rows in lines.values())
        subprocess.run(["gnuplot"], input=script, text=True, check=True)
