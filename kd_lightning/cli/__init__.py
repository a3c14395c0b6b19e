"""The command line: ``kd-lightning``. Its parts load torch only where they need it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_lightning.cli.engine import CLI as CLI, build as build, main as main


def __getattr__(name: str) -> Any:  # so that `kd-lightning --help` does not wait for torch
    if name not in ("CLI", "build", "main"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kd_lightning.cli.engine"), name)
