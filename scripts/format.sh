#!/usr/bin/env bash
# Formats the C++ and Python sources of the repository in place.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

own_cpp_sources | xargs -0 clang-format -i
ruff check --fix-only --quiet .
ruff format .
