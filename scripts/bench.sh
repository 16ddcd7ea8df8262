#!/usr/bin/env bash
# The benchmarks behind the figures in README.md, on an otherwise idle machine. Arguments go to the benchmark program,
# for example --benchmark_filter=forward.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

scripts/setup.sh
configure_and_build release
for program in build/release/bin/bench_*; do
  echo "--- $program"
  "$program" "$@"
done
