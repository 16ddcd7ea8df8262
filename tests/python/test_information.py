"""info, explain, and the choice of an implementation and an instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import tessera

Q = np.random.default_rng(5).standard_normal((1, 64, 2, 32), dtype=np.float32)


def test_info() -> None:
    info = tessera.info()
    assert info["version"] == tessera.__version__
    assert info["selected_isa"] in info["isas"]
    assert info["threads"] >= 1
    rows = {row["name"]: row for row in info["impls"]}
    assert rows["reference"]["available"]
    assert all(row["available"] or row["reason"] for row in rows.values())


def test_explain_names_the_forced_implementation() -> None:
    assert "reference" in tessera.explain(Q, Q, Q, impl="reference")
    assert tessera.explain(Q, Q, Q, causal=True) != tessera.explain(Q, Q, Q)
    assert tessera.explain(Q, Q, Q, backward=True) != tessera.explain(Q, Q, Q)


@pytest.mark.parametrize("isa", tessera.info()["isas"])
def test_forced_isa(isa: str) -> None:
    assert isa in tessera.explain(Q, Q, Q, isa=isa)
    out, _ = tessera.forward(Q, Q, Q, isa=isa)
    expected, _ = tessera.forward(Q, Q, Q, impl="reference")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_a_kept_plan_does_not_outlive_a_change_of_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tessera.explain(Q, Q, Q)
    isa = tessera.info()["isas"][-1]
    monkeypatch.setenv("TESSERA_ISA", isa)
    assert isa in tessera.explain(Q, Q, Q)
    monkeypatch.delenv("TESSERA_ISA")
    assert tessera.explain(Q, Q, Q) == before


def test_every_public_name_is_documented() -> None:
    for name in tessera.__all__:
        assert getattr(tessera, name).__doc__
