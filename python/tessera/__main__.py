"""python -m tessera: what this machine offers, and how fast it computes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from . import _bench, info


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}'; accepted: an integer, 1 or more")
    return int(text)


def _lengths(text: str) -> list[int]:
    return [_number(length) for length in text.split(",")]


def _file(text: str) -> Path:
    """Found out before anything is measured."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}'; accepted: a file in a folder that exists")
    return path


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
    bench.add_argument("--batch", type=_number, default=1)
    bench.add_argument("--heads", type=_number, default=8)
    bench.add_argument("--dim", type=_number, default=64)
    bench.add_argument("--causal", action="store_true")
    bench.add_argument("--threads", type=_number, default=0, help="of every library (all)")
    bench.add_argument("--repeats", type=_number, default=5, help="of which the median counts")
    bench.add_argument("--plot", type=_file, metavar="FILE", help="draw the table there; needs matplotlib")
    bench.add_argument("--json", type=_file, metavar="FILE", help="write every figure there")
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
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.command == "info":
        _print_info()
        return 0
    for module, needed in (("numpy", True), ("matplotlib", arguments.plot is not None)):
        if needed and importlib.util.find_spec(module) is None:
            parser.error(f"{'--plot' if module == 'matplotlib' else 'bench'} needs {module}, which is not installed")
    try:
        return _run_bench(arguments)
    except ValueError as error:  # sizes that the library does not take
        parser.error(str(error))


def _run_bench(arguments: argparse.Namespace) -> int:
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
