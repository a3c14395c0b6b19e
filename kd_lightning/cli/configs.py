"""YAML files: the shipped ones and their headers, and a file by its name. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from kd_lightning.cli.errors import Parser
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import shortened
from kd_lightning.core.lookup import suggestion

_PACKAGE = Path(__file__).parents[1]
SHIPPED = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)
"""The directory of the shipped files: inside an installed package, beside it in a checkout."""

NO_METHODS = ("compare", "parts")
"""Directories of files that train nothing alone: comparisons, and parts to add to a method."""


class Config(NamedTuple):
    """A shipped YAML file that trains a method."""

    name: str
    """Its path without the suffix: ``response/kd``."""
    title: str
    """The first line of its header: the method, its authors and where it was published."""
    path: Path


def list_configs() -> list[Config]:
    """List the shipped files that train a method, by name."""
    found: list[Config] = []
    for path in sorted(SHIPPED.rglob("*.yaml")):
        relative = path.relative_to(SHIPPED).with_suffix("")
        if relative.parts[0] not in NO_METHODS:
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            found.append(Config(relative.as_posix(), first.lstrip("# "), path))
    return found


def find_config(name: str) -> Path:
    """Find a YAML file by its name: in the working directory, or else among the shipped ones.

    Args:
        name: A path; shipped files are found with and without the leading ``configs/``.

    Raises:
        UsageError: There is no such file.
    """
    if not name:
        raise UsageError("--config: name a YAML file")
    path = Path(name).expanduser()
    try:
        for candidate in (path, SHIPPED / name, SHIPPED / name.removeprefix("configs/")):
            if candidate.is_file():
                return candidate
    except OSError as error:  # such as a name that is too long
        raise UsageError(
            f"--config {shortened(name, 80)}: cannot be read ({error.strerror}): name a YAML file"
        ) from None
    if path.is_dir():
        there = ", ".join(sorted(file.name for file in path.glob("*.yaml"))) or "no YAML file"
        raise UsageError(f"--config {name}: is a directory, not a file: it contains {there}")
    if path.exists():
        raise UsageError(f"--config {name}: is not a regular file, but a pipe or a device: name a YAML file")
    shipped = [f"configs/{file.relative_to(SHIPPED).as_posix()}" for file in SHIPPED.rglob("*.yaml")]
    beside = [str(file) for file in path.parent.glob("*.yaml")]
    raise UsageError(f"--config {name}: no such file{suggestion(name, [*beside, *shipped])}")


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge `changes` into a copy of `base`: mappings key by key, anything else is replaced.

    Where `changes` names another ``class_path``, the old class's ``init_args`` are dropped.

    Example:
        >>> merge({"data": {"seed": 1, "size": 9}}, {"data": {"seed": 2}})
        {'data': {'seed': 2, 'size': 9}}
        >>> merge({"class_path": "Adam", "init_args": {"fused": True}}, {"class_path": "SGD", "init_args": {"lr": 0.1}})
        {'class_path': 'SGD', 'init_args': {'lr': 0.1}}
    """
    merged = dict(base)
    if changes.get("class_path", base.get("class_path")) != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(cast("dict[str, Any]", old), cast("dict[str, Any]", value)) if both else value
    return merged


def list_command(args: Sequence[str]) -> int:
    """Run ``kd-lightning list``: print the name and title of every shipped method."""
    parser = Parser("kd-lightning list", description="List all methods that come with the package, with their papers.")
    if (more := parser.parse_known_args(args)[1]) and not more[0].startswith("-"):
        raise UsageError(
            f"list {' '.join(more)}: list takes no argument; `kd-lightning show {more[0]}` prints one file"
        )
    parser.parse_args(args)
    configs = list_configs()
    width = max(len(config.name) for config in configs)
    print("\n".join(f"{config.name:{width}}  {config.title}" for config in configs))
    return 0


def show_command(args: Sequence[str]) -> int:
    """Run ``kd-lightning show NAME``: print a shipped YAML file, whose header has the paper and the command."""
    parser = Parser("kd-lightning show", description="Print the YAML file of a method.")
    parser.add_argument("name", metavar="NAME", nargs="*", help="e.g. response/kd, or kd; `kd-lightning list` has all")
    names: list[str] = parser.parse_args(args).name
    if len(names) != 1:
        raise UsageError("show: give the name of one method, e.g. `kd-lightning show response/kd`; `list` has them all")
    (name,) = names
    configs = list_configs()
    found = [c for c in configs if c.name == name] or [c for c in configs if c.path.stem == name]
    if len(found) == 1:
        print(found[0].path.read_text(encoding="utf-8"), end="")
        return 0
    if found:
        raise UsageError(f"show {name}: several methods have this name: {', '.join(config.name for config in found)}")
    known = {name for config in configs for name in (config.name, config.path.stem)}
    raise UsageError(f"show {name}: there is no such method{suggestion(name, known)}")
