#!/usr/bin/env bash
# Runs the GPT example: run.sh [option of train.py]... Uses .venv-torch and the Python module of build/release or
# build/dev; leaves build/gpt/loss.png and build/gpt/loss.json.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"

python="$root/.venv-torch/bin/python"
if [[ ! -x "$python" ]]; then
  echo "gpt: no .venv-torch; scripts/setup.sh test makes it" >&2
  exit 1
fi
for preset in release dev; do
  if [[ -d "$root/build/$preset/python/tessera" ]]; then
    mkdir -p "$root/build/gpt"
    PYTHONPATH="$root/build/$preset/python" exec "$python" "$here/train.py" \
      --plot "$root/build/gpt/loss.png" --json "$root/build/gpt/loss.json" "$@"
  fi
done
echo "gpt: no Python module; build it: cmake --preset release && cmake --build build/release" >&2
exit 1
