#!/usr/bin/env bash
# The benchmarks behind the figures in README.md, on an otherwise idle machine. Arguments go to the Google Benchmark
# suite, for example --benchmark_filter=forward. The comparison with torch needs torch and is run by hand; see
# docs/benchmarks.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

scripts/setup.sh
configure_and_build release all
build/release/bin/cpu_table --json build/release/cpu_table.json
build/release/bin/memory_table
build/release/bin/bench_attention "$@"
