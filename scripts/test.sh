#!/usr/bin/env bash
# Everything that has to pass: build, lint, tests, the sanitizers and a short run of each fuzzer. Ends with a table of
# times and one line of counts; the status is 0 only if all passed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# ThreadSanitizer of older Clang releases cannot place its shadow memory under full address randomisation.
fixed_addresses=()
if setarch "$(uname -m)" -R true 2>/dev/null; then
  fixed_addresses=(setarch "$(uname -m)" -R)
fi

run_tests() {
  local preset="$1"
  shift
  rm -f "build/$preset/results.xml"
  "${fixed_addresses[@]}" ctest --preset "$preset" -j "$jobs" --output-junit "$PWD/build/$preset/results.xml" "$@"
}

set -- dev asan-ubsan tsan
thread_tests=(tessera_thread_tests tessera_unit_tests tessera_dist_tests tessera_workspace_pool_tests)
stage "set-up" scripts/setup.sh test || exit 1
if stage "build: dev" configure_and_build dev all; then
  stage "lint" scripts/lint.sh build/dev || true
  stage "tests: dev" run_tests dev || true
fi
if stage "build: asan-ubsan" configure_and_build asan-ubsan all; then
  stage "tests and fuzzers: asan-ubsan" run_tests asan-ubsan -LE 'slow|gpu|threads' || true
fi
if stage "build: tsan" configure_and_build tsan "${thread_tests[@]}"; then
  stage "tests: tsan" run_tests tsan -L 'threads|unit|dist' || true
fi

stage_table
python scripts/count_tests.py --failed-stages "$failed_stages" "${@/#/build/}"
