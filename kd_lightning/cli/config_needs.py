"""What a configuration needs beyond this package: files of weights and data, and packages."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

from kd_lightning.cli.extras import LOGGERS, missing_module, missing_packages, version_of
from kd_lightning.core.packaged import PREFIX, packaged_names

WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")
"""Ends of the names of files of weights."""
PLACES = ("checkpoint", "ckpt_path", "directory", "root", "data_dir")
"""Settings that name a file or a directory which must be there; what a run writes has other names."""


class Need(NamedTuple):
    """A file, a class or a package that a configuration needs."""

    line: str
    """Its setting and value, and what to do if it is missing."""
    is_there: bool


def needs_of(config: Any) -> list[Need]:
    """List what a configuration needs, each thing once; it is not built.

    Example:
        >>> [need.line for need in needs_of({"teacher": {"checkpoint": "packaged:mnist/teacher-0"}})]
        ['teacher.checkpoint: packaged:mnist/teacher-0']
    """
    return list(dict.fromkeys(need for place, key, value in _texts(config, ()) for need in _needs(place, key, value)))


def _needs(place: str, key: str, value: str) -> Iterator[Need]:
    if key == "class_path":
        yield from _needs_of_class(place, value)
    elif value.startswith(PREFIX):
        yield Need(f"{place}: {value}", value in packaged_names())
    elif value.endswith(WEIGHTS) or key in PLACES:
        there = Path(value).expanduser().exists()
        yield Need(f"{place}: {value}" + ("" if there else ": no such file: train it first, or name another"), there)


def _needs_of_class(place: str, class_path: str) -> Iterator[Need]:
    found, problem = _class(class_path)
    if problem:
        yield Need(f"{place}: {problem}", is_there=False)
    package = LOGGERS.get(class_path.rpartition(".")[2])
    if package:
        there = bool(version_of(package))
        yield Need(f"{place}: {package}" + ("" if there else f": pip install {package}"), there)
    module = sys.modules.get(getattr(found, "__module__", ""))
    if module is not None and module.__name__.startswith("kd_lightning."):
        # the line of the error that its import raises names the extra
        for extra in re.findall(r"pip install 'kd-lightning\[(\w+)\]'", inspect.getsource(module)):
            missing = missing_packages().get(extra, [])
            remedy = f": pip install 'kd-lightning[{extra}]'" if missing else ""
            yield Need(f"{place}: the extra {extra}{remedy}", not missing)


def _class(class_path: str) -> tuple[Any, str]:
    """Return a class or function by its name, dotted or short, and what is wrong with the name."""
    from kd_lightning.cli.components import PACKAGES

    module, _, name = class_path.rpartition(".")
    for package in [module] if module else PACKAGES:
        try:
            found = getattr(import_module(package), name, None)
        except ImportError as error:
            return None, f"{class_path}: {missing_module(error) or error}"
        if found is not None:
            return found, ""
    ours = [each for key, each in sys.modules.items() if not module and key.startswith("kd_lightning.")]
    if found := next((vars(each)[name] for each in ours if name in vars(each)), None):
        return found, ""
    return None, f"there is no {class_path}: name an importable class"


def _texts(config: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the last key and the text of every text in a configuration."""
    if isinstance(config, dict):
        for key, value in cast("dict[str, Any]", config).items():
            yield from _texts(value, (*path, str(key)))
    elif isinstance(config, list):
        for index, value in enumerate(cast("list[Any]", config)):
            yield from _texts(value, (*path, str(index)))
    elif isinstance(config, str) and path:
        place = [key for key in path if key not in ("init_args", "class_path", "dict_kwargs")]
        yield ".".join(place), path[-1], config
