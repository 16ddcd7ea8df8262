#!/usr/bin/env bash
# Cross-compiles the library and its tests for 64-bit Arm, and runs a part of them under qemu: the NEON kernels.
# Exit status 77 when the tools are not there. Usage: run.sh build SOURCE-FOLDER BUILD-FOLDER, then run.sh run BUILD-FOLDER
set -euo pipefail

for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  if ! command -v "$tool" >/dev/null; then
    echo "SKIPPED: no $tool (Debian packages g++-aarch64-linux-gnu, qemu-user, googletest)"
    exit 77
  fi
done

build() {
  local source_dir="$1" build="$2"
  cmake -S "$source_dir" -B "$build" -G Ninja --toolchain "$source_dir/cmake/toolchains/aarch64-linux-gnu.cmake" \
    -Wno-deprecated -DCMAKE_BUILD_TYPE=Release -DTESSERA_BUILD_CLI=OFF -DTESSERA_BUILD_TESTS=ON
  cmake --build "$build" -j "$(nproc)" --target tessera_unit_tests tessera_conformance_tests
}

run() {
  local build="$1"
  # The loader and libraries of the target lie where its compiler finds them.
  QEMU_LD_PREFIX="$(dirname "$(aarch64-linux-gnu-g++ -print-file-name=ld-linux-aarch64.so.1)")/.."
  export QEMU_LD_PREFIX
  # The dispatch must have come to NEON. The largest cases and groups are left to the host: what they vary is how tiles are
  # chosen and where numbers lie, which no instruction set changes.
  export TESSERA_ISA=neon
  # The compiler in PATH makes code for the host.
  export TESSERA_JIT=off
  qemu-aarch64 "$build/bin/tessera_unit_tests" --gtest_brief=1
  qemu-aarch64 "$build/bin/tessera_conformance_tests" --gtest_brief=1 \
    --gtest_filter='Table/*:-*band_*:*strides_*:*lengths_*:*blocks_1*:*blocks_4*:*blocks_6*:*blocks_density*:*blocks_by_*:*heads_*_*:*bias_?_?_?_?:*sinks_window_grouped'
}

"$@"
