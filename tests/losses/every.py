"""All losses that the package exports, and the cases that the tests declare for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_lightning import losses
from tests.losses.case import Case

Values = Tensor | list[Tensor]

LOSSES: dict[str, type[nn.Module]] = {
    name: found
    for name, found in vars(losses).items()
    if name.endswith("Loss") and isinstance(found, type) and issubclass(found, nn.Module)
}


def needed(kind: type[nn.Module]) -> list[str]:
    """Return the names of the required arguments."""
    arguments = inspect.signature(kind).parameters.values()
    return [a.name for a in arguments if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {name: Case() for name, kind in LOSSES.items() if not needed(kind)}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        if path.stem != "test_every_loss" and "\nCASES" in path.read_text(encoding="utf-8"):
            found |= import_module(f"tests.losses.{path.parent.name}.{path.stem}").CASES
    return found


CASES = cases()


def build(name: str, **given: Any) -> nn.Module:
    """Build a new loss with float32 weights."""
    return (CASES[name].build or LOSSES[name])(**given)


def listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def each(change: Callable[[Any], Any], values: Any) -> Any:
    """Apply a function to a value, or to each value of a list."""
    return [change(value) for value in values] if isinstance(values, list) else change(values)


def like(values: Any, flat: list[Tensor]) -> Values:
    return flat if isinstance(values, list) else flat[0]
