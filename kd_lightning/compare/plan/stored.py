"""Stored results, which are read only if they are whole: any other counts as not finished."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"
"""Key of the hash over all other entries."""
_RESULT: dict[str, type | tuple[type, ...]] = {
    "network": str,
    "digest": str,
    "steps": int,
    "seconds": (int, float),
    "curve": list,
    "metrics": dict,
}
_STATS: dict[str, type | tuple[type, ...]] = {"name": str, "parameters": int, "bytes": int}


class DamagedError(ValueError):
    """A stored file has changed since it was written; the message is one line with the file and its fault."""


def sealed(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with the hash of its entries, so that `read_result` finds any change.

    Example:
        >>> sorted(sealed({"seconds": 1.5}))
        ['seconds', 'sha256']
    """
    return {**result, SEAL: _hash(result)}


def read_result(path: Path) -> dict[str, Any]:
    """Read a run's result.

    Raises:
        DamagedError: The file is not readable, not JSON, lacks an entry, or has changed since it was written.
    """
    result = _read_mapping(path)
    seal = result.pop(SEAL, None)
    if seal is None:  # of an earlier version, or written by hand
        _check_entries(path, result, _RESULT)
    elif seal != _hash(result):
        raise DamagedError(f"{path}: has changed since it was written")
    return result


def read_stats(path: Path) -> dict[str, Any]:
    """Read the costs of networks; none where there is no file.

    Raises:
        DamagedError: The file is not readable, not JSON, or lacks an entry.
    """
    if not path.exists():
        return {}
    stats = _read_mapping(path)
    for entry in stats.values():
        _check_entries(path, entry, _STATS)
    return stats


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else "not JSON" if path.stat().st_size else "empty"
        raise DamagedError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: contains a {type(content).__name__} in place of a mapping")
    return content


def _check_entries(path: Path, found: Any, expected: Mapping[str, type | tuple[type, ...]]) -> None:
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: contains a {type(found).__name__} in place of a mapping")
    for key, kind in expected.items():
        if not isinstance(value := found.get(key), kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise DamagedError(f"{path}: its {key!r} is {str(value)[:40]!r}, or missing")


def _hash(result: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(result))  # tuples become lists, as in the file
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
