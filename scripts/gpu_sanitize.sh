#!/usr/bin/env bash
# The tools of compute-sanitizer over the tests whose names begin with Small: accesses out of bounds, races in shared memory,
# wrong barriers, reads of what was never written. Needs a GPU. Usage: gpu_sanitize.sh [TOOL...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tests="build/dev/bin/tessera_gpu_tests"

# The path of compute-sanitizer: the toolkit's, else the one from PyPI, which is installed by name.
find_sanitizer() {
  local toolkit="${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}/bin/compute-sanitizer"
  if command -v compute-sanitizer; then
    return
  elif [[ -x "$toolkit" ]]; then
    echo "$toolkit"
    return
  fi
  pip install -q --disable-pip-version-check -r scripts/requirements-sanitizer.txt >&2
  ls "$venv"/lib/python*/site-packages/nvidia/cu13/bin/compute-sanitizer
}

sanitize() {
  "$sanitizer" --tool "$1" --error-exitcode 1 "$tests" --gtest_filter='Small*' --gtest_brief=1
}

scripts/setup.sh test
stage "build: dev" configure_and_build dev tessera_gpu_tests || exit 1
sanitizer="$(find_sanitizer)"
(($# > 0)) || set -- memcheck racecheck synccheck initcheck
for tool in "$@"; do
  stage "$tool" sanitize "$tool" || true
done
stage_table
exit $((failed_stages > 0))
