#!/usr/bin/env bash
# Runs the ring example on two ranks: run.sh [option of train.py]... RANKS says another number. Uses .venv-torch and the
# Python module of build/release or build/dev.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"

python="$root/.venv-torch/bin/python"
if [[ ! -x "$python" ]]; then
  echo "ring_torch: no .venv-torch; scripts/setup.sh test makes it" >&2
  exit 1
fi
for preset in release dev; do
  if [[ -d "$root/build/$preset/python/tessera" ]]; then
    PYTHONPATH="$root/build/$preset/python" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" exec "$python" \
      -m torch.distributed.run --nproc-per-node "${RANKS:-2}" "$here/train.py" "$@"
  fi
done
echo "ring_torch: no Python module; build it: cmake --preset release && cmake --build build/release" >&2
exit 1
