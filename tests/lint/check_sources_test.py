"""The rules of check_sources.py refuse what they must and accept what they should."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import check_sources


def problems(check: str, files: dict[str, str]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return list(check_sources.CHECKS[check](root, [pathlib.PurePath(name) for name in files]))


class Includes(unittest.TestCase):
    def refused(self, name: str, include: str) -> None:
        self.assertEqual(len(problems("includes", {name: f"#include {include}\n"})), 1, f"{name}: {include}")

    def accepted(self, name: str, include: str) -> None:
        self.assertEqual(problems("includes", {name: f"#include {include}\n"}), [])

    def test_only_leftwards(self):
        self.refused("src/core/a.cpp", '"mask/b.h"')
        self.refused("src/mask/a.cpp", '"plan/b.h"')
        self.refused("src/cpu/a.cpp", '"api/b.h"')
        self.refused("src/api/a.cpp", '"cli/b.h"')
        self.accepted("src/cpu/a.cpp", '"plan/b.h"')
        self.accepted("src/api/a.cpp", '"cpu/b.h"')
        self.accepted("src/cpu/a.cpp", '"cpu/b.h"')
        self.accepted("tests/unit/a.cpp", '"cli/b.h"')

    def test_siblings(self):
        self.refused("src/reference/a.cpp", '"plan/b.h"')
        self.refused("src/plan/a.cpp", '"reference/b.h"')
        self.refused("src/cuda/a.cpp", '"cpu/b.h"')
        self.refused("src/cpu/a.cpp", '"cuda/b.h"')
        self.refused("bench/a.cpp", '"cli/b.h"')

    def test_the_layer_inside_cuda(self):
        self.accepted("src/function/a.cpp", '"cuda/jit/b.h"')
        self.accepted("src/cuda/a.cpp", '"cuda/jit/b.h"')
        self.refused("src/function/a.cpp", '"cuda/b.h"')
        self.refused("src/cuda/jit/a.cpp", '"cuda/b.h"')
        self.refused("src/cuda/jit/a.cpp", '"function/b.h"')

    def test_public_headers(self):
        self.refused("include/tessera/a.h", '"core/b.h"')
        self.refused("include/tessera/a.h", "<omp.h>")
        self.refused("include/tessera/a.h", "<hwy/highway.h>")
        self.accepted("include/tessera/a.h", '"tessera/b.h"')
        self.accepted("include/tessera/a.h", "<cstdint>")

    def test_third_party_headers(self):
        self.refused("src/reference/a.cpp", "<cblas.h>")
        self.refused("src/mask/a.cpp", '"hwy/highway.h"')
        self.accepted("src/cpu/a.cpp", '"hwy/highway.h"')
        self.accepted("src/cpu/a.cpp", "<cblas.h>")

    def test_kernels(self):
        self.refused("src/cuda/sm90/fwd/a.cuh", '"plan/b.h"')
        self.refused("src/cuda/sm90/fwd/a.cuh", '"core/half.h"')
        self.refused("src/cuda/common/a.cu", "<cuda_runtime.h>")
        self.refused("src/cuda/common/a.cu", "<vector>")
        self.refused("src/cuda/tile/a.cuh", '"tessera/tessera.h"')
        self.accepted("src/cuda/common/a.cu", '"cuda/ptx/b.cuh"')
        self.accepted("src/cuda/ptx/a.cuh", "<cuda/ptx>")
        self.accepted("src/cuda/ptx/a.cuh", "<cuda_bf16.h>")
        self.accepted("src/cuda/a.cpp", "<cuda.h>")

    def test_examples_use_the_public_headers(self):
        self.refused("examples/a.cpp", '"core/half.h"')
        self.accepted("examples/a.cpp", '"tessera/tessera.h"')

    def test_paths_are_written_from_src(self):
        self.refused("src/core/a.cpp", '"b.h"')
        self.refused("src/core/a.cpp", '"../mask/b.h"')

    def test_spaces_before_the_directive(self):
        self.assertEqual(len(problems("includes", {"src/core/a.h": '  #  include "mask/b.h"\n'})), 1)


class Paths(unittest.TestCase):
    def test_absolute_paths(self):
        for top in ("home", "usr", "opt"):
            self.assertEqual(len(problems("paths", {"a.sh": f"cat /{top}/x\n"})), 1, top)

    def test_relative_paths_and_shebangs(self):
        usr = "/".join(("", "usr", "lib"))
        text = f"#!{usr}/python3\nopen('build{usr}'); $root{usr}; https://example.org{usr}\n"
        self.assertEqual(problems("paths", {"a.py": text}), [])


if __name__ == "__main__":
    unittest.main()
