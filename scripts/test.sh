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

# Where there is no GPU, the tests that need one are skipped in one process instead of thousands.
tests_of_dev() {
  local without_gpu=() status=0
  rm -f build/dev/gpu_results.xml
  if ! gpu_is_there; then
    build/dev/bin/tessera_gpu_tests --gtest_brief=1 --gtest_output="xml:build/dev/gpu_results.xml" || status=$?
    without_gpu=(-LE gpu)
  fi
  run_tests dev "${without_gpu[@]}" || status=$?
  return "$status"
}

# One test more at a time than there are processors: those over ranks, of mpirun and of pip wait more than they compute.
run_tests() {
  local preset="$1"
  shift
  rm -f "build/$preset/results.xml"
  "${fixed_addresses[@]}" ctest --preset "$preset" -j "$((jobs + 1))" \
    --output-junit "$PWD/build/$preset/results.xml" "$@"
}

set -- dev asan-ubsan tsan
thread_tests=(tessera_thread_tests tessera_unit_tests tessera_dist_tests tessera_workspace_pool_tests)
stage "set-up" scripts/setup.sh test || exit 1
# Without a GPU, kernels are there to be compiled: one of each kind.
kernels=few
if gpu_is_there; then
  kernels=default
fi
cmake_options=("-DTESSERA_CUDA_KERNELS=$kernels")
if stage "build: dev" configure_and_build dev all; then
  stage "lint" scripts/lint.sh build/dev || true
  stage "tests: dev" tests_of_dev || true
fi
if stage "build: asan-ubsan" configure_and_build asan-ubsan all; then
  stage "tests and fuzzers: asan-ubsan" run_tests asan-ubsan -LE 'slow|gpu|threads' || true
fi
if stage "build: tsan" configure_and_build tsan "${thread_tests[@]}"; then
  stage "tests: tsan" run_tests tsan -L 'threads|unit|dist' || true
fi

stage_table
python scripts/count_tests.py --failed-stages "$failed_stages" "${@/#/build/}"
