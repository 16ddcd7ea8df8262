"""The extension module; its functions are described where tessera/__init__.py wraps them."""

from collections.abc import Callable, Sequence
from typing import Any

_Allocate = Callable[[Sequence[int], str], Any]

def forward(
    q: Any, k: Any, v: Any, out: Any | None, lse: Any | None, allocate: _Allocate, options: dict[str, Any]
) -> tuple[Any, Any]: ...
def backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    dlse: Any | None,
    wanted: dict[str, Any],
    allocate: _Allocate,
    options: dict[str, Any],
) -> tuple[Any, Any, Any, Any | None, Any | None]: ...
def merge(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, out: Any | None, lse: Any | None, allocate: _Allocate
) -> tuple[Any, Any]: ...
def explain(q: Any, k: Any, v: Any, backward: bool, options: dict[str, Any]) -> str: ...
def options_of_mask(mask: Any, q: Any, k: Any, as_band: bool) -> dict[str, Any]: ...
def info() -> dict[str, Any]: ...
def free_workspaces() -> None: ...
