"""Optional packages: the extras of this package, and what loggers of Lightning need. Loads no torch."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

LOGGERS = {
    "csv": "",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet_ml",
    "NeptuneLogger": "neptune",
}
"""The package that each logger imports."""
OF_DEVELOPERS = ("dev", "foreign")
"""Extras that users do not need."""


def version_of(package: str) -> str:
    """Return the version of an installed package; empty if it is not installed.

    Example:
        >>> version_of("no-such-package")
        ''
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def missing_packages() -> dict[str, list[str]]:
    """List the packages of each extra for users that are not installed, by the extra's name.

    Example:
        >>> "dev" in missing_packages()
        False
    """
    found: dict[str, list[str]] = {}
    try:
        lines = requires("kd-lightning") or []
    except PackageNotFoundError:  # the package was put on the path, and not installed
        lines = []
    for line in lines:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if extra and extra[1] not in OF_DEVELOPERS:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            found.setdefault(extra[1], [])
            if not version_of(name):
                found[extra[1]].append(name)
    return found


def missing_module(error: BaseException) -> str:
    """Say which package an error misses, and how to install it; empty for any other error.

    Args:
        error: An error of an import, such as that of Lightning's `WandbLogger`.

    Example:
        >>> missing_module(ModuleNotFoundError("No module named 'wandb'", name="wandb"))
        'needs the package wandb, which is not installed: pip install wandb'
    """
    if not isinstance(error, ImportError):
        return ""
    named = re.search(r"[Rr]equirement '([\w.-]+)|pip install (?:-U )?[`'\"]?([\w.-]+)", str(error))
    name = next((each for each in named.groups() if each), "") if named else (error.name or "").partition(".")[0]
    if not name or (named is None and _is_there(name)):
        return ""
    package = name.replace("_", "-")
    return f"needs the package {package}, which is not installed: pip install {package}"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:
        return True
