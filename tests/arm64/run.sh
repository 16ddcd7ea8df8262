#!/usr/bin/env bash
# Cross-compiles the library and its tests for 64-bit Arm and runs a part of them under qemu: the NEON kernels.
# Exit status 77 when the tools are not there. Usage: run.sh SOURCE-FOLDER BUILD-FOLDER
set -euo pipefail
source_dir="$1"
build="$2"

for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  if ! command -v "$tool" >/dev/null; then
    echo "SKIPPED: no $tool (Debian packages g++-aarch64-linux-gnu, qemu-user, googletest)"
    exit 77
  fi
done

cmake -S "$source_dir" -B "$build" -G Ninja --toolchain "$source_dir/cmake/toolchains/aarch64-linux-gnu.cmake" \
  -DCMAKE_BUILD_TYPE=Release -DTESSERA_BUILD_CLI=OFF -DTESSERA_BUILD_TESTS=ON
cmake --build "$build" -j "$(nproc)"
