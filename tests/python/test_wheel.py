"""A wheel is built from the source tree, installed into a clean environment and used there.

It is compiled as the build folder of the tests is (CXX and TESSERA_TEST_KERNELS say with what), so that the
compiler cache has the library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Without NumPy: buffers in, buffers out.
USE = """
import sys, time
start = time.perf_counter()
import tessera
seconds = time.perf_counter() - start
heavy = sorted({"numpy", "torch", "jax", "transformers"} & sys.modules.keys())
q, out = (memoryview(bytearray(128)).cast("f", (1, 4, 1, 8)) for _ in range(2))
lse = memoryview(bytearray(16)).cast("f", (1, 1, 4))
tessera.forward(q, q, q, out=out, lse=lse, causal=True)
assert [round(x, 4) for x in lse.tolist()[0][0]] == [0.0, 0.6931, 1.0986, 1.3863]
print(tessera.__version__, tessera.__file__, heavy, seconds)
"""


def run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    like_the_tests = [
        "cmake.build-type=RelWithDebInfo",
        "cmake.define.CMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1 -DNDEBUG",
        "cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON",
        "cmake.define.TESSERA_WITH_OPENBLAS=ON",
        f"cmake.define.TESSERA_CUDA_KERNELS={os.environ.get('TESSERA_TEST_KERNELS', 'default')}",
        "build-dir=build/wheel-test",
    ]
    settings = [f"--config-settings={setting}" for setting in like_the_tests]
    environment = {**os.environ, "CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", ROOT, "--no-build-isolation", "--no-deps", "-w", folder, *settings, environment=environment)
    (made,) = folder.glob("*.whl")
    return made


def test_contents(wheel: Path) -> None:
    assert wheel.name.startswith("tessera_attention-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tessera/__init__.py", "tessera/_tessera.pyi", "tessera/py.typed", "tessera/torch/__init__.py"} <= {*names}
    assert [name.split(".")[-1] for name in names if name.startswith("tessera/_tessera.") and "pyi" not in name] == [
        "so"
    ]
    outside = [name for name in names if not name.startswith(("tessera/", "tessera_attention-"))]
    assert outside == []


def test_installed_into_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--quiet", wheel)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    results = [run(python, "-c", USE, environment=environment).split(maxsplit=2) for _ in range(3)]
    version, file, _ = results[0]
    assert version in wheel.name
    assert Path(file).is_relative_to(tmp_path)
    heavy = {result[2].rsplit(maxsplit=1)[0] for result in results}
    assert heavy == {"[]"}
    assert min(float(result[2].rsplit(maxsplit=1)[1]) for result in results) < 0.3
