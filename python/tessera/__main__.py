"""python -m tessera: what this machine offers, and how fast it computes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import _bench, info


def _lengths(text: str) -> list[int]:
    return [int(length) for length in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tessera", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, instruction sets and implementations")
    bench = commands.add_parser(
        "bench",
        help="a table of times, and a plot of it",
        description="Times the implementations of this machine on the same problems, and torch's "
        "scaled_dot_product_attention beside them where torch is installed. Needs NumPy.",
    )
    bench.add_argument("--seqs", type=_lengths, default=[256, 512, 1024, 2048], help="lengths (256,512,1024,2048)")
    bench.add_argument("--batch", type=int, default=1)
    bench.add_argument("--heads", type=int, default=8)
    bench.add_argument("--dim", type=int, default=64)
    bench.add_argument("--causal", action="store_true")
    bench.add_argument("--threads", type=int, default=0, help="of every library; 0: all")
    bench.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="draw the table there; needs matplotlib")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def _print_info() -> None:
    facts = info()
    print(
        f"tessera {facts['version']}, {facts['selected_isa']} of {', '.join(facts['isas'])}, {facts['threads']} threads"
    )
    for row in facts["impls"]:
        print(f"  {row['name']:10} {row['summary'] if row['available'] else 'not available: ' + row['reason']}")
    for row in facts["cuda"]["devices"]:
        major, minor = row["capability"]
        memory = f"{row['memory_bytes'] / 2**30:.0f} GiB"
        print(f"cuda:{row['index']}: {row['name']}, {major}.{minor}, {row['multiprocessors']} SMs, {memory}")


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.command == "info":
        _print_info()
        return 0
    problem = _bench.Problem(arguments.batch, arguments.heads, arguments.dim, arguments.causal)
    rows = []
    print(f"{problem}\n\n{_bench.HEADER}")
    for row in _bench.measure(problem, arguments.seqs, arguments.threads, arguments.repeats):
        print(_bench.line(row), flush=True)
        rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    if arguments.plot:
        _bench.plot(problem, rows, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
