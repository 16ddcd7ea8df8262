#!/usr/bin/env bash
# What Tessera does, in a few minutes: a release build, what this machine offers, a few problems against the oracle,
# the benchmark table with its plot, and a real model.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tessera="build/release/bin/tessera"
out="build/demo"

show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

stage "set-up" scripts/setup.sh
stage "build: release" configure_and_build release all
mkdir -p "$out"
stage "this machine" show "$tessera" info
stage "against the oracle" show "$tessera" verify --random 20 --seed 1
stage "benchmark" show "$tessera" bench --json "$out/bench.json" --plot "$out/bench.png"
stage "a real model" show examples/minilm/run.sh build/release
stage_table
echo
echo "plot: $out/bench.png, figures: $out/bench.json"
