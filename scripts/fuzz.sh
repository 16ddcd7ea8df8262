#!/usr/bin/env bash
# Runs every fuzzer of a build for a while, from the seeds in its corpus folder. Usage: fuzz.sh BUILD-FOLDER SECONDS
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build="$1"
seconds="$2"
found=0
for fuzzer in "$build"/bin/fuzz_*; do
  [[ -x "$fuzzer" ]] || continue
  found=$((found + 1))
  name="$(basename "$fuzzer")"
  work="$build/fuzz/$name"
  mkdir -p "$work/corpus"
  seeds=("tests/fuzz/corpus/${name#fuzz_}")
  [[ -d "${seeds[0]}" ]] || seeds=()
  echo "--- $name for $seconds s"
  "$fuzzer" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -artifact_prefix="$work/" -print_final_stats=1 \
    "$work/corpus" "${seeds[@]}" >"$work/log" 2>&1 || {
    tail -40 "$work/log"
    echo "$name FAILED; the input is in $work" >&2
    exit 1
  }
  grep -E 'stat::number_of_executed_units|stat::average_exec' "$work/log"
done
if ((found == 0)); then
  echo "no fuzzers in $build/bin" >&2
  exit 1
fi
