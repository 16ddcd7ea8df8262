"""Print what the compiler said of each GPU kernel: registers, spills, stack, static shared memory, seconds.

The logs are those that the build leaves beside the images; the build target cuda-report calls this.
"""

import argparse
import pathlib
import re
from typing import NamedTuple

FUNCTION = re.compile(r"entry function '(?P<name>\w+)' for '(?P<gpu>\w+)'(?P<rest>.*?)(?=entry function|\Z)", re.DOTALL)
HEADINGS = ("kernel", "GPU", "registers", "spills, bytes", "stack, bytes", "static shared memory, bytes", "seconds")


class Kernel(NamedTuple):
    name: str
    gpu: str  # whose code it is
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    seconds: float  # of the image, shown with its first kernel

    def cells(self) -> tuple[str, ...]:
        seconds = f"{self.seconds:.1f}" if self.seconds else ""
        return self.name, self.gpu, *map(str, self[2:6]), seconds


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def kernels_of(log: pathlib.Path) -> list[Kernel]:
    image = log.name.split(".")[0]
    text = log.read_text()
    seconds = float(re.search(r"^seconds: ([\d.]+)$", text, re.MULTILINE)[1])
    kernels = []
    for function in sorted(FUNCTION.finditer(text), key=lambda function: (function["name"], function["gpu"])):
        name, rest = function["name"], function["rest"]
        kernels.append(
            Kernel(
                name=name if name == image else f"{image}: {name}",
                gpu=function["gpu"],
                registers=number(r"Used (\d+) registers", rest),
                spill_bytes=number(r"(\d+) bytes spill stores", rest) + number(r"(\d+) bytes spill loads", rest),
                stack_bytes=number(r"(\d+) bytes stack frame", rest),
                shared_bytes=number(r"(\d+) bytes smem", rest),
                seconds=0 if kernels else seconds,
            )
        )
    return kernels


def summary(kernels: list[Kernel]) -> str:
    seconds = [kernel.seconds for kernel in kernels]
    spilling = sum(kernel.spill_bytes > 0 for kernel in kernels)
    return f"{len(kernels)} kernels, {spilling} spill; {sum(seconds):.0f} s to compile, at most {max(seconds):.1f} s"


def plain(kernels: list[Kernel]) -> str:
    rows = [HEADINGS, *(kernel.cells() for kernel in kernels)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *numbers]))
    return "\n".join([*lines, "", summary(kernels)])


def markdown(kernels: list[Kernel]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---" + "|---:" * (len(HEADINGS) - 2) + "|"]
    lines += ["| " + " | ".join(kernel.cells()) + " |" for kernel in kernels]
    return "\n".join(
        [
            "# GPU kernels",
            "",
            "As ptxas reports them. Written by the build target `cuda-report`, with `-DTESSERA_CUDA_KERNELS=all`.",
            f"{summary(kernels)}.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, fromfile_prefix_chars="@")
    parser.add_argument("--markdown", type=pathlib.Path, help="also write the table to this file")
    parser.add_argument("logs", nargs="+", type=pathlib.Path, help="logs, or @FILE with one on each line")
    arguments = parser.parse_args()
    kernels = [kernel for log in arguments.logs for kernel in kernels_of(log)]
    print(plain(kernels))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(kernels))
        print(f"written to {arguments.markdown}")


if __name__ == "__main__":
    main()
