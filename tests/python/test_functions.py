"""ScoreFunction and MaskFunction: as objects, against NumPy, and the examples with them."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tessera
from attention_reference import Scores, attention, relative_error

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "functions"))

import run as examples

CAP = """
template <class T>
T score(T s, tessera::Index, const float* params) {
  return params[0] * tanh(s / params[0]);
}
"""
LOWER = "bool keep(tessera::Index i) { return i.key <= i.query; }"


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


Q, K, V = normal(2, 9, 4, 8), normal(2, 12, 2, 8), normal(2, 12, 2, 8)


def test_functions_are_values() -> None:
    for kind in (tessera.ScoreFunction, tessera.MaskFunction):
        function = kind(CAP, [2.0, 0.5], name="cap")
        assert (function.source, function.params, function.name) == (CAP, (2.0, 0.5), "cap")
        assert repr(function) == f"cap(2 params, {function.hash[:8]})"
        same = pickle.loads(pickle.dumps(function))
        assert same == function
        assert hash(same) == hash(function)
        assert kind(CAP, [2.0, 0.25], name="cap") != function
        assert kind(CAP, [2.0, 0.5]) != function
        assert function != CAP
    assert tessera.ScoreFunction(CAP) != tessera.MaskFunction(CAP)


def test_params_of_any_shape() -> None:
    assert tessera.ScoreFunction(CAP, np.arange(6, dtype=np.float32).reshape(2, 3)).params == (0, 1, 2, 3, 4, 5)
    assert tessera.ScoreFunction(CAP, (1, 2)).params == (1, 2)
    with pytest.raises(ValueError, match=r"params\[1\]: 1e\+39; accepted: numbers of float32"):
        tessera.ScoreFunction(CAP, (1, 1e39))
    with pytest.raises(ValueError, match=r"params: 'abc'; accepted: a sequence or an array of numbers"):
        tessera.ScoreFunction(CAP, "abc")
    with pytest.raises(ValueError, match="data: 3 bytes"):
        tessera.ScoreFunction.from_bytes(b"abc")


def test_what_functions_depend_on() -> None:
    assert not tessera.MaskFunction(LOWER).depends_on_head
    assert tessera.MaskFunction("bool keep(tessera::Index i) { return i.head; }").depends_on_head
    assert tessera.MaskFunction("bool keep(tessera::Index i) { return i.batch; }").depends_on_batch


def test_score_function_is_softcap_by_hand() -> None:
    options: dict[str, Any] = {"causal": True}
    out, lse = tessera.forward(Q, K, V, score_function=tessera.ScoreFunction(CAP, [2.0]), **options)
    dout = normal(*out.shape)
    grads = tessera.backward(dout, Q, K, V, out, lse, score_function=tessera.ScoreFunction(CAP, [2.0]), **options)
    out_built_in, lse_built_in = tessera.forward(Q, K, V, softcap=2.0, **options)
    expected = tessera.backward(dout, Q, K, V, out_built_in, lse_built_in, softcap=2.0, **options)
    assert relative_error(out, out_built_in) < 1e-6
    for ours, theirs in zip(grads[:3], expected[:3], strict=True):
        assert relative_error(ours, theirs) < 1e-6


def test_mask_function_and_start() -> None:
    below = np.arange(12)[None, :] <= np.arange(9)[:, None]
    scores = Scores(visible=np.broadcast_to(below, (2, 4, 9, 12)), scale=8**-0.5)
    assert (
        relative_error(
            tessera.attention(Q, K, V, mask_function=tessera.MaskFunction(LOWER)), attention(Q, K, V, scores).out
        )
        < 2e-6
    )
    ours = tessera.attention(Q, K, V, mask_function=tessera.MaskFunction(LOWER), function_start=(0, 0, 3, 0))
    assert relative_error(ours, tessera.attention(Q, K, V, causal=True)) < 1e-6


def test_compile_errors_have_the_users_lines() -> None:
    wrong = tessera.ScoreFunction(CAP.replace("tanh", "tanhyperbolic"), [1.0], name="wrong")
    with pytest.raises(ValueError, match=r"score_function: 'wrong' does not compile:\n(.|\n)*wrong:4:"):
        tessera.attention(Q, K, V, score_function=wrong)


def test_wrong_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_function: .*; accepted: a tessera.MaskFunction"):
        tessera.attention(Q, K, V, mask_function=tessera.ScoreFunction(CAP, [1.0]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"score_function: 'tanh'; accepted: a tessera.ScoreFunction"):
        tessera.attention(Q, K, V, score_function="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source of 'score_function': text with #include"):
        tessera.ScoreFunction("#include <cmath>\n" + CAP)


def test_explain_names_the_functions() -> None:
    text = tessera.explain(Q, K, V, score_function=tessera.ScoreFunction(CAP, [2.0], name="cap"))
    assert "score_function cap(1 param, " in text


def test_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert examples.main() == 0
    assert capsys.readouterr().out.count("largest difference to NumPy") == 5
