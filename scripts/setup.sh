#!/usr/bin/env bash
# Installs what the build needs (and, with `test`, what the tests need besides): Debian packages that are missing, by
# name, and the pinned Python tools into .venv (with `test`, torch and JAX into .venv-torch: 1.7 GB). nvcc, which builds the
# GPU kernels, comes into .venv with `test`, or where there is an NVIDIA GPU, unless there is one already. Does nothing,
# quickly, when all is there. Usage: setup.sh [test]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(
  build-essential ca-certificates ccache cmake git ninja-build python3-dev python3-venv
  gnuplot-nox libbenchmark-dev libcli11-dev libfmt-dev libhwy-dev libopenblas-dev nlohmann-json3-dev
)
# Packages that some releases fold into another one: installed where they exist.
optional=()
if [[ "${1:-}" == test ]]; then
  packages+=(clang googletest libgtest-dev libomp-dev libopenmpi-dev openmpi-bin g++-aarch64-linux-gnu qemu-user)
  optional+=(libclang-rt-dev)
fi

installed() {
  [[ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" == ii* ]]
}

as_root() {
  if [[ "$(id -u)" == 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "setup: these packages are missing and there is no sudo: ${missing[*]}" >&2
    return 1
  fi
}

# A tool that is on PATH already, from wherever, does not need its package.
provided() {
  case "$1" in
    cmake) command -v cmake >/dev/null && cmake_is_new_enough ;;
    ninja-build) command -v ninja >/dev/null ;;
    git | ccache) command -v "$1" >/dev/null ;;
    python3-dev | python3-venv) python3 -c 'import ensurepip, sysconfig, pathlib, sys
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' 2>/dev/null ;;
    *) return 1 ;;
  esac
}

cmake_is_new_enough() {
  cmake -E true && [[ "$(printf '%s\n' 3.25 "$(cmake --version | sed -n '1s/.* //p')" | sort -V | head -1)" == 3.25 ]]
}

missing=()
for package in "${packages[@]}"; do
  installed "$package" || provided "$package" || missing+=("$package")
done
for package in "${optional[@]}"; do
  # The compiler says where its sanitizer libraries are; without them the package is needed.
  if ! [[ -e "$(clang++ -print-file-name=libclang_rt.asan-"$(uname -m)".a 2>/dev/null)" ||
    -e "$(clang++ -print-runtime-dir 2>/dev/null)/libclang_rt.asan-$(uname -m).a" ||
    -e "$(clang++ -print-runtime-dir 2>/dev/null)/libclang_rt.asan.a" ]]; then
    missing+=("$package")
  fi
done

if ((${#missing[@]} > 0)); then
  if ! command -v apt-get >/dev/null; then
    echo "setup: this is not a Debian or Ubuntu system; please install the equivalents of: ${missing[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -q
  wanted=()
  for package in "${missing[@]}"; do
    if [[ " ${optional[*]} " != *" $package "* ]] || apt-cache show "$package" >/dev/null 2>&1; then
      wanted+=("$package")
    fi
  done
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${wanted[@]}"
fi

# install_into VENV REQUIREMENTS [RECORD]: unless the record in VENV says that it has just these already.
install_into() {
  local record="$1/${3:-.requirements}"
  if [[ -x "$1/bin/python" ]] && cmp -s "$2" "$record"; then
    return
  fi
  echo "setup: installing the Python packages of $2 into $1"
  [[ -x "$1/bin/python" ]] || python3 -m venv "$1"
  # Most of torch and its like is never imported: what is compiles itself.
  "$1/bin/python" -m pip install -q --no-compile --disable-pip-version-check -r "$2" && cp "$2" "$record"
}

# Whether there is an nvcc that the build takes, in the places where cmake/TesseraCuda.cmake looks.
nvcc_is_there() {
  local nvcc version
  for nvcc in "${CUDACXX:-nvcc}" nvcc "${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}/bin/nvcc"; do
    version="$("$nvcc" --version 2>/dev/null | sed -n 's/.*, V\([0-9.]*\)$/\1/p')"
    if [[ -n "$version" && "$(printf '%s\n' 12.4 "$version" | sort -V | head -1)" == 12.4 ]]; then
      return
    fi
  done
  return 1
}

install_into "$venv" scripts/requirements.txt
if [[ "${1:-}" == test ]] && ! install_into "$torch_venv" scripts/requirements-torch.txt; then
  rm -rf "$torch_venv"
  echo "setup: torch and its like cannot be installed; the tests that need them will be skipped" >&2
fi
if [[ "${1:-}" == test ]] || gpu_is_there; then
  if ! nvcc_is_there && ! install_into "$venv" scripts/requirements-cuda.txt .requirements-cuda; then
    echo "setup: nvcc cannot be installed; the library is built without CUDA" >&2
  fi
fi
# A distribution whose CMake is older than 3.25 gets one from PyPI.
if ! cmake_is_new_enough 2>/dev/null && ! [[ -x "$venv/bin/cmake" ]]; then
  "$venv/bin/python" -m pip install -q --disable-pip-version-check 'cmake==3.31.6'
fi
