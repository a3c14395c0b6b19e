"""The source files behind a configuration: a result stands only while they are the same. Imports none of them."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, cast

import kd_lightning

_PACKAGE = Path(kd_lightning.__file__).parent
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def sources_hash(config: Any) -> str:
    """Hash the package's version and the files of every class and function that a configuration names.

    A user's file counts with all files of theirs that it imports, and each class of this package with its own file.
    What is installed, such as torch, does not count: results of another release are compared at the reader's risk.

    Args:
        config: The plain values of a configuration.
    """
    digest = hashlib.sha256(kd_lightning.__version__.encode())
    files = {path for name in set(_class_paths(config)) for path in source_files(name)}
    for content in sorted(_content_hash(path, path.stat().st_mtime_ns) for path in files):  # the place does not count
        digest.update(content.encode())
    return digest.hexdigest()


def source_files(class_path: str) -> set[Path]:
    """Find the files of a class or function: ours by its own file, a user's with what it imports; else none.

    Example:
        >>> [path.name for path in source_files("KDLoss")]
        ['kd.py']
        >>> source_files("torch.nn.ReLU"), source_files("no.such.thing")
        (set(), set())
    """
    module, _, name = class_path.rpartition(".")
    if not module or module.partition(".")[0] == "kd_lightning":
        return {_own_files()[name]} if name in _own_files() else set()
    found: set[Path] = set()
    _collect(module, found)
    return found


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        content = cast("dict[str, Any]", value)
        if isinstance(name := content.get("class_path"), str):
            yield name
        value = list(content.values())
    for item in cast("list[Any]", value) if isinstance(value, list) else ():
        yield from _class_paths(item)


def _collect(module: str, found: set[Path]) -> None:
    """Add the file of a module, those of the packages around it, and those of the modules that they import."""
    path, parts = None, module.split(".")
    for i in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:i]), path)
        if spec is None:
            return
        path = spec.submodule_search_locations
        if spec.origin is None or not spec.origin.endswith(".py"):  # a folder without an __init__.py, or no Python
            continue
        file = Path(spec.origin).resolve()
        if any(file.is_relative_to(folder) for folder in (*_INSTALLED, _PACKAGE)):
            return
        if file not in found:
            found.add(file)
            inside = ".".join(parts[: i if path else i - 1])
            for imported in _imports(file, inside):
                _collect(imported, found)


def _imports(file: Path, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # which the run itself will say
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # perhaps modules


@cache
def _own_files() -> dict[str, Path]:
    """The file of each public class and function of the package."""
    definition = re.compile(r"^(?:class|def) ([A-Za-z]\w*)", re.MULTILINE)
    return {
        name: path
        for path in sorted(_PACKAGE.rglob("*.py"))
        for name in definition.findall(path.read_text(encoding="utf-8"))
    }


@cache
def _content_hash(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
