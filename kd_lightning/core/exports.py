"""The public names of a package that re-exports those of its modules."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def public_names(namespace: dict[str, Any]) -> list[str]:
    """List the public names that a package's ``__init__`` imports, which are its ``__all__``.

    Args:
        namespace: The package's ``globals()``.

    Example:
        >>> public_names({"KDLoss": int, "kd_loss": len, "_private": 1, "public_names": public_names})
        ['KDLoss', 'kd_loss']
    """
    names = (
        name for name, value in namespace.items() if not isinstance(value, ModuleType) and value is not public_names
    )
    return sorted(name for name in names if not name.startswith("_"))
