"""Rules about the source tree that no compiler checks.

includes: a folder includes only what stands to its left in the dependency rule, siblings never include each other,
          public headers include only public headers and the standard library, and third-party headers stay out of the
          layers that promise to have none. Kernels include only this project's device headers and few of the toolkit's.
paths:    no file names an absolute path.
"""

import argparse
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

# Folders of one group are siblings; each may include the groups before its own.
ORDER = (
    {"core"},
    {"jit"},
    {"function"},
    {"mask"},
    {"reference", "plan"},
    {"cpu", "cuda"},
    {"dist"},
    {"api", "mpi", "nccl", "tcp"},
    {"python", "cli", "bench", "examples"},
    {"tests"},
)
RANK = {folder: rank for rank, group in enumerate(ORDER) for folder in group}
LAYERS = {folder for group in ORDER[:8] for folder in group}
# Highway's own examples quote its headers; foreach_target.h relies on the order that they show.
QUOTED_THIRD_PARTY = {"hwy"}
# Layers whose code needs nothing but the standard library.
STANDARD_ONLY = {"core", "mask", "reference", "plan"}
# What kernels may include beside "cuda/...", so that they also compile where there is no host compiler.
KERNEL_SUFFIXES = {".cu", ".cuh"}
KERNEL_HEADERS = {"cstdint", "cuda/ptx", "cuda_bf16.h", "cuda_fp16.h"}
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
STANDARD_HEADER = re.compile(r"[a-z0-9_]+")
ABSOLUTE_PATH = re.compile(r"(?<![\w.$}/:*-])/(?:home|root|work|usr|opt|tmp|mnt|var|etc|srv|Users)/")
BINARY_SUFFIXES = {".png", ".safetensors", ".bin"}


# The run-time compilation that functions and kernels share is a layer of its own, inside the folder of kernels.
LAYER_INSIDE = {("cuda", "jit"): "jit"}


def layer_of(parts: tuple[str, ...]) -> str:
    """The layer of a path below src, from its folders."""
    return LAYER_INSIDE.get(parts[:2], parts[0])


def folder_of(path: pathlib.PurePath) -> str | None:
    """The folder of the dependency rule that a file belongs to; "include" for public headers."""
    parts = path.parts
    if parts[0] == "src":
        return layer_of(parts[1:-1]) if len(parts) > 2 else None
    return parts[0] if parts[0] == "include" or parts[0] in RANK else None


def include_problem(folder: str, quoted: str | None, angled: str | None) -> str | None:
    """Why a file of `folder` may not have this include, or None."""
    if angled is not None:
        standard = STANDARD_HEADER.fullmatch(angled) is not None
        if not standard and (folder == "include" or folder in STANDARD_ONLY):
            return f"<{angled}> is not a standard header"
        return None
    if quoted.startswith("tessera/"):
        return None
    if folder == "include":
        return f'public headers include "tessera/...", not "{quoted}"'
    target = layer_of(tuple(quoted.split("/")[:-1])) if "/" in quoted else None
    if target in QUOTED_THIRD_PARTY:
        return f'{folder} needs nothing but the standard library, not "{quoted}"' if folder in STANDARD_ONLY else None
    if folder == "examples" and target in LAYERS:
        return f'examples use the public headers, not "{quoted}"'
    if target not in RANK:
        if folder in LAYERS:
            return f'"{quoted}" is not written as folder/name from src'
        return None  # a file beside the including one, or a folder inside it
    if target != folder and RANK[target] >= RANK[folder]:
        return f'{folder} may not include "{quoted}": {target} does not stand to its left'
    return None


def kernel_include_problem(quoted: str | None, angled: str | None) -> str | None:
    """Why a kernel source may not have this include, or None."""
    if angled is not None and angled not in KERNEL_HEADERS:
        return f"<{angled}> is not one of the headers that kernels include: {', '.join(sorted(KERNEL_HEADERS))}"
    if quoted is not None and not quoted.startswith("cuda/"):
        return f'kernels include "cuda/...", not "{quoted}"'
    return None


def check_includes(root: pathlib.Path, files: list[pathlib.PurePath]) -> Iterator[str]:
    for path in files:
        folder = folder_of(path)
        if folder is None or path.suffix not in SUFFIXES:
            continue
        for match in INCLUDE.finditer((root / path).read_text()):
            problem = include_problem(folder, match[1], match[2])
            if path.suffix in KERNEL_SUFFIXES and not problem:
                problem = kernel_include_problem(match[1], match[2])
            if problem:
                yield f"{path}: {problem}"


def check_paths(root: pathlib.Path, files: list[pathlib.PurePath]) -> Iterator[str]:
    for path in files:
        if path.suffix in BINARY_SUFFIXES or path.name == "LICENSE":
            continue
        try:
            lines = (root / path).read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if not line.startswith("#!") and ABSOLUTE_PATH.search(line):
                yield f"{path}:{number}: absolute path: {line.strip()}"


def repository_files(root: pathlib.Path) -> list[pathlib.PurePath]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [pathlib.PurePath(line) for line in listing.stdout.splitlines()]
    return [path for path in files if (root / path).is_file()]


CHECKS = {"includes": check_includes, "paths": check_paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=sorted(CHECKS))
    parser.add_argument("root", type=pathlib.Path)
    arguments = parser.parse_args()
    files = repository_files(arguments.root)
    if not files:
        print(f"no files under {arguments.root}", file=sys.stderr)
        return 1
    problems = list(CHECKS[arguments.check](arguments.root, files))
    for problem in problems:
        print(problem)
    print(f"{len(files)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
