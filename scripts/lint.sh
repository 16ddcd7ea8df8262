#!/usr/bin/env bash
# Formatting and static checks of the repository's own sources. Usage: lint.sh [BUILD-FOLDER]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build="${1:-build/dev}"
[[ -e "$build/compile_commands.json" ]] || cmake --preset dev

own_cpp_sources | xargs -0 clang-format --dry-run -Werror
ruff check .
ruff format --check .
mypy
python scripts/tidy.py "$build" --jobs "$jobs"
