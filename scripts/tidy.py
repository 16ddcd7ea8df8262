"""Run clang-tidy over the repository's own C++ sources, in parallel and only where something changed.

A file is run again when its preprocessed text, its compile command, .clang-tidy or clang-tidy itself changed; the
digests of files that passed are kept in the build folder.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Tests are left to the compilers' warnings and the sanitizers: they would double the time.
FOLDERS = ("src", "cli", "bench", "examples")


def own_sources(build: pathlib.Path) -> dict[pathlib.Path, dict]:
    """Compile commands of the repository's sources, by file."""
    commands = json.loads((build / "compile_commands.json").read_text())
    found = {}
    for command in commands:
        path = pathlib.Path(command["directory"], command["file"]).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS:
            found.setdefault(path, command)
    return found


def preprocess_command(command: dict) -> list[str]:
    words = shlex.split(command["command"])
    if pathlib.Path(words[0]).name == "ccache":
        words = words[1:]
    output = words.index("-o")
    del words[output : output + 2]
    return [*words, "-E", "-P"]


def clang_headers() -> str:
    """The folder of the installed Clang's own headers: clang-tidy from PyPI brings no omp.h."""
    found = subprocess.run(["clang", "-print-resource-dir"], capture_output=True, text=True, check=True)
    return f"{found.stdout.strip()}/include"


def digest(command: dict, salt: bytes) -> str | None:
    text = subprocess.run(preprocess_command(command), cwd=command["directory"], capture_output=True, check=False)
    if text.returncode != 0:
        return None
    return hashlib.sha256(salt + command["command"].encode() + text.stdout).hexdigest()


def check(
    path: pathlib.Path, command: dict, build: pathlib.Path, cache: pathlib.Path | None, salt: bytes
) -> tuple[bool, str]:
    key = digest(command, salt) if cache else None
    if key is not None and (cache / key).exists():
        return True, ""
    # The commands are GCC's: Clang does not know some of its warnings, and Clang's own are not asked for here.
    # The added headers come last.
    extra = ["-Wno-unknown-warning-option", "-Wno-error", "-idirafter", clang_headers()]
    run = subprocess.run(
        ["clang-tidy", "-p", str(build), "--quiet", *(f"--extra-arg={word}" for word in extra), str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0 and key is not None:
        (cache / key).touch()
    return run.returncode == 0, run.stdout


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
    sources = own_sources(build)
    # The largest first, so that no long file starts last.
    ordered = sorted(sources, key=lambda path: path.stat().st_size, reverse=True)
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {pool.submit(check, path, sources[path], build, cache, salt): path for path in ordered}
        for done in concurrent.futures.as_completed(runs):
            passed, output = done.result()
            if not passed:
                failures += 1
                print(f"clang-tidy: {runs[done].relative_to(ROOT)}\n{output}", flush=True)
    print(f"clang-tidy: {len(ordered) - failures} files pass, {failures} fail, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
