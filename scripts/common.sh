# Shared by the scripts: paths, stages with their times. Sourced by bash with `set -euo pipefail`.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv=".venv"
torch_venv=".venv-torch"
export PATH="$root/$venv/bin:$PATH"
# Compilations are found again in another clone of the repository.
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1
# With precompiled headers, which tests have, the compiler cache works only so. It has to compare the files themselves: what
# it finds by preprocessed text is the same after a change of comments, and GCC then takes header and file for two.
export CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_DEPEND=1
jobs="${JOBS:-$(nproc)}"
stage_names=()
stage_results=()
stage_seconds=()
failed_stages=0
cmake_options=()

# stage NAME COMMAND...: runs it, keeps its time and whether it passed; its status is the command's.
stage() {
  local name="$1" start=$SECONDS status=0
  shift
  printf '\n=== %s\n' "$name"
  "$@" || status=$?
  local result=passed
  if ((status != 0)); then
    result="FAILED ($status)"
    failed_stages=$((failed_stages + 1))
  fi
  stage_names+=("$name")
  stage_results+=("$result")
  stage_seconds+=($((SECONDS - start)))
  return "$status"
}

stage_table() {
  printf '\n%-32s %8s  %s\n' stage seconds result
  local i
  for i in "${!stage_names[@]}"; do
    printf '%-32s %8d  %s\n' "${stage_names[$i]}" "${stage_seconds[$i]}" "${stage_results[$i]}"
  done
  printf '%-32s %8d\n' total "$SECONDS"
}

gpu_is_there() {
  [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1
}

# configure_and_build PRESET TARGET.... Joined by && because errexit does not hold inside a stage.
configure_and_build() {
  cmake --preset "$1" "${cmake_options[@]}" && cmake --build "build/$1" -j "$jobs" --target "${@:2}"
}

# The C++ and CUDA files that git tracks or would track, each ended by a null byte.
own_cpp_sources() {
  git ls-files -z --cached --others --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh' '*.def'
}
