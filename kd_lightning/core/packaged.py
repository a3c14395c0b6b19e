"""Weights that ride along with the package: trained teachers, by name. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import suggestion

PREFIX = "packaged:"
_FOLDER = Path(__file__).parents[1] / "weights" / "files"


def packaged_path(name: str) -> Path:
    """Return the file of packaged weights, the same in a wheel as in a checkout.

    Args:
        name: ``packaged:<data>/<network>-<seed>``, as in ``packaged:mnist/teacher-0``.

    Raises:
        UsageError: There are no weights of this name.

    Example:
        >>> packaged_path("packaged:mnist/teacher-0").name
        'teacher-0.safetensors'
        >>> packaged_path("packaged:mnist/teacher-7")
        Traceback (most recent call last):
        kd_lightning.core.errors.UsageError: packaged:mnist/teacher-7: no such weights; did you mean...
    """
    if name not in (names := packaged_names()):
        raise UsageError(f"{name}: no such weights{suggestion(name, names)}")
    return _FOLDER / f"{name.removeprefix(PREFIX)}.safetensors"


def weights_path(name: str) -> Path:
    """Return the file of a name: that of packaged weights, or a path with ``~`` expanded."""
    return packaged_path(name) if name.startswith(PREFIX) else Path(name).expanduser()


def packaged_names() -> list[str]:
    """List the names of all packaged weights.

    Example:
        >>> packaged_names()[0]
        'packaged:mnist/teacher-0'
    """
    files = sorted(_FOLDER.rglob("*.safetensors"))
    return [PREFIX + path.relative_to(_FOLDER).with_suffix("").as_posix() for path in files]
