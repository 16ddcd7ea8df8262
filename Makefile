# Each target sets up what it needs by itself.
.DEFAULT_GOAL := help
.PHONY: help demo test bench format lint gpu-test gpu-sanitize clean

help:
	@echo "make demo    build, then show what Tessera does: info, verify, bench, a real model"
	@echo "make test    everything that has to pass: build, lint, tests, sanitizers, fuzzers"
	@echo "make bench   the benchmarks behind the figures in README.md"
	@echo "make format  format the sources in place"
	@echo "make lint    clang-format, ruff, mypy and clang-tidy, without changing anything"
	@echo "make gpu-test      the tests that need a GPU"
	@echo "make gpu-sanitize  compute-sanitizer over small problems on the GPU"
	@echo "make clean   remove the build folder"

demo:
	@scripts/demo.sh

test:
	@scripts/test.sh

bench:
	@scripts/bench.sh

format:
	@scripts/setup.sh
	@scripts/format.sh

lint:
	@scripts/setup.sh test
	@scripts/lint.sh

gpu-test:
	@scripts/gpu_test.sh

gpu-sanitize:
	@scripts/gpu_sanitize.sh

clean:
	rm -rf build
