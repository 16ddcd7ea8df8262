#!/usr/bin/env bash
# The tests that need a GPU; without one they say so and are skipped. Arguments go to ctest, for example -R ragged.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

scripts/setup.sh test
cmake --preset dev -DTESSERA_CUDA_KERNELS=all
cmake --build build/dev -j "$jobs"
rm -f build/dev/{results,gpu_results}.xml
ctest --preset dev -L gpu -j "$jobs" --output-junit "$PWD/build/dev/results.xml" "$@" || true
python scripts/count_tests.py build/dev
