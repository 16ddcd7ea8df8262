"""Run clang-tidy over the repository's own C++ sources, in parallel and only where something changed.

Most of a run is the headers, so the files of a folder that are compiled alike go through it together, as in a unity
build. They are run again when their preprocessed text, their compile command, .clang-tidy or clang-tidy itself changed;
the digests of what passed are kept in the build folder.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Tests are left to the compilers' warnings and the sanitizers: they would double the time.
FOLDERS = ("src", "cli", "bench", "examples")
# More in a unit save little, and few units leave processors without work at the end.
FILES_PER_UNIT = 10
# A call of the driver or of NCCL throws where there is none. In one unit with that, bugprone-exception-escape complains
# of the destructors of what only a driver makes.
ALONE = (ROOT / "src/cuda", ROOT / "src/nccl")
# An own source, wherever a unit includes it, is looked at as if it stood alone.
OWN_FILES = rf"^{re.escape(str(ROOT))}/(include/tessera|src|cli|bench|examples|tests)/.*\.(h|cpp)$"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Sources of one folder, and how each is compiled: the words of the command but for the source and the output."""

    sources: tuple[pathlib.Path, ...]
    command: tuple[str, ...]
    directory: str


def sources_of(file: pathlib.Path) -> list[pathlib.Path]:
    """The sources that a compile command's file stands for: its own, or those of a file that a unity build made."""
    if file.parent.name != "Unity":
        return [file]
    return [pathlib.Path(name) for name in re.findall(r'^#include "(.*)"$', file.read_text(), re.MULTILINE)]


def stands_alone(source: pathlib.Path) -> bool:
    """A program has a main() of its own, and Highway includes the file that it compiles again for each target."""
    return source.parent in ALONE or bool(
        re.search(r"^int main\(|^#include \"hwy/foreach_target.h\"", source.read_text(), re.MULTILINE)
    )


def own_units(build: pathlib.Path) -> list[Unit]:
    groups: dict[tuple, list[pathlib.Path]] = {}
    seen = set()
    for entry in json.loads((build / "compile_commands.json").read_text()):
        file = pathlib.Path(entry["directory"], entry["file"]).resolve()
        words = shlex.split(entry["command"])
        if pathlib.Path(words[0]).name == "ccache":
            words = words[1:]
        output = words.index("-o")
        command = (*words[:output], *words[output + 2 : words.index("-c")])
        for source in sources_of(file):
            if not source.is_relative_to(ROOT) or source.relative_to(ROOT).parts[0] not in FOLDERS or source in seen:
                continue
            seen.add(source)
            together = source if stands_alone(source) else source.parent
            groups.setdefault((together, command, entry["directory"]), []).append(source)
    return [
        Unit(tuple(sorted(group)[first : first + FILES_PER_UNIT]), command, directory)
        for (_, command, directory), group in groups.items()
        for first in range(0, len(group), FILES_PER_UNIT)
    ]


def write_units(units: list[Unit], folder: pathlib.Path) -> dict[pathlib.Path, Unit]:
    """The file of each unit, beside a compile_commands.json of them all."""
    folder.mkdir(exist_ok=True)
    files = {}
    database = []
    for unit in units:
        first = unit.sources[0].relative_to(ROOT)
        file = unit.sources[0]
        if len(unit.sources) > 1:
            file = folder / ("_".join(first.parent.parts) + f"_{first.stem}_and_{len(unit.sources) - 1}_more.cpp")
            file.write_text("".join(f'#include "{source}"\n' for source in unit.sources))
        files[file] = unit
        database.append({"directory": unit.directory, "file": str(file), "arguments": [*unit.command, "-c", str(file)]})
    (folder / "compile_commands.json").write_text(json.dumps(database))
    return files


def clang_headers() -> str:
    """The folder of the installed Clang's own headers: clang-tidy from PyPI brings no omp.h."""
    found = subprocess.run(["clang", "-print-resource-dir"], capture_output=True, text=True, check=True)
    return f"{found.stdout.strip()}/include"


def digest(file: pathlib.Path, unit: Unit, salt: bytes) -> str | None:
    command = [*unit.command, "-E", "-P", str(file)]
    text = subprocess.run(command, cwd=unit.directory, capture_output=True, check=False)
    if text.returncode != 0:
        return None
    return hashlib.sha256(salt + shlex.join(command).encode() + text.stdout).hexdigest()


def check(file: pathlib.Path, unit: Unit, folder: pathlib.Path, cache: pathlib.Path | None, salt: bytes) -> str:
    """What clang-tidy has to say; nothing if the unit passes."""
    key = digest(file, unit, salt) if cache else None
    if key is not None and (cache / key).exists():
        return ""
    # The commands are GCC's: Clang does not know some of its warnings, and Clang's own are not asked for here.
    # The added headers come last.
    extra = ["-Wno-unknown-warning-option", "-Wno-error", "-idirafter", clang_headers()]
    options = ["--quiet", "--checks=-bugprone-suspicious-include", f"--header-filter={OWN_FILES}"]
    run = subprocess.run(
        ["clang-tidy", "-p", str(folder), *options, *(f"--extra-arg={word}" for word in extra), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0 and key is not None:
        (cache / key).touch()
    return "" if run.returncode == 0 else run.stdout + run.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path, help="build folder with a compile_commands.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    build = arguments.build.resolve()

    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, check=True).stdout
    salt = version + (ROOT / ".clang-tidy").read_bytes()
    cache = build / "clang-tidy-passed"
    cache.mkdir(exist_ok=True)
    if os.environ.get("CI") and not any(cache.iterdir()):
        cache = None  # a build folder that is used once has no use for digests

    start = time.monotonic()
    folder = build / "clang-tidy"
    files = write_units(own_units(build), folder)
    # The largest first, so that no long unit starts last.
    ordered = sorted(files, key=lambda file: sum(s.stat().st_size for s in files[file].sources), reverse=True)
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {pool.submit(check, file, files[file], folder, cache, salt): file for file in ordered}
        for done in concurrent.futures.as_completed(runs):
            if words := done.result():
                unit = files[runs[done]]
                failures += 1
                print(f"clang-tidy: {' '.join(str(s.relative_to(ROOT)) for s in unit.sources)}\n{words}", flush=True)
    count = sum(len(unit.sources) for unit in files.values())
    print(f"clang-tidy: {count} files in {len(files)} units, {failures} units fail, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
