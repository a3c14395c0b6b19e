"""The objects that a configuration describes: their classes, and the one that raised an error."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple, cast, get_type_hints

from jsonargparse import Namespace

WRAPPERS = ("init_args", "class_path", "dict_kwargs")
"""jsonargparse's keys between a setting and its object's arguments; messages leave them out."""
PACKAGES = (
    "kd_lightning.schemes",
    "kd_lightning.losses",
    "kd_lightning.networks",
    "kd_lightning.data",
    "kd_lightning.callbacks",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "torch.optim",
    "torch.optim.lr_scheduler",
)
"""Packages whose classes a YAML file may name without their module."""


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""The kinds of ``*args`` and ``**kwargs``, which no setting can be."""


class Component(NamedTuple):
    """The object that raised an error."""

    field: str
    """Its place in the configuration, dotted; empty if no object was found."""
    in_constructor: bool
    """True if its constructor raised."""


def locate_component(error: BaseException, config: Any) -> Component:
    """Find the innermost object of a configuration among the frames of an error's traceback.

    Args:
        error: The error of a constructor or a method.
        config: The parsed configuration.
    """
    parts = [(field, node, resolve(node["class_path"])) for field, node in _nodes(config, ())]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        names = frame.f_locals
        owner = names.get("self")
        candidates = [
            (field, node, inspect.isclass(factory))
            for field, node, factory in parts
            if factory and (type(owner) is factory or getattr(factory, "__code__", None) is frame.f_code)
        ]
        if candidates:
            # Two terms may have losses of one class: their arguments tell them apart.
            matches = [field for field, node, _ in candidates if _has_arguments(node, names, owner)]
            first, _, is_class = candidates[0]
            return Component([*matches, first][0], not is_class or frame.f_code.co_name == "__init__")
    if any(frame.f_code.co_name == "instantiate_trainer" for frame in frames):
        return Component("trainer", in_constructor=True)
    return Component("", in_constructor=False)


def unexpected_nulls(config: Any) -> Iterator[tuple[str, str]]:
    """Yield each field that is null although its type is not, and the type: the parser accepts these.

    The type of a required argument without an annotation is empty: the parser makes it null where it is missing.
    """
    for field, node in _nodes(config, ()):
        factory = resolve(node["class_path"])
        try:
            # annotations as text: some types exist for type checkers only
            signature = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)
        except (TypeError, ValueError):  # written in C
            continue
        for name, value in (node.get("init_args") or {}).items():
            parameter = signature.parameters.get(name)
            if value is None and parameter is not None and parameter.default is not None:
                if parameter.annotation is parameter.empty:
                    if parameter.default is parameter.empty:
                        yield f"{field}.{name}", ""
                    continue
                expected = inspect.formatannotation(parameter.annotation)
                if not re.search(r"None|Optional|Any\b|_empty", expected):
                    yield f"{field}.{name}", expected.strip("'")


def resolve(class_path: str) -> Any:
    """Import a class or function by its dotted name; None if there is none."""
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def parameters(class_path: str) -> list[str]:
    """List the arguments of a class or function, with those that ``**kwargs`` passes to its parents."""
    factory = resolve(class_path)
    if not callable(factory):
        return []
    found: dict[str, None] = {}
    for function in _constructors(factory) if inspect.isclass(factory) else [factory]:
        arguments = inspect.signature(function).parameters.values()
        named = (argument.name for argument in arguments if argument.kind not in VARIADIC)
        found |= dict.fromkeys(name for name in named if name != "self")
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            break
    return list(found)


def argument_names(config: Any, field: str) -> list[str]:
    """List the arguments of the class at a dotted place of a configuration; empty if there is none."""
    return next((parameters(node["class_path"]) for place, node in _nodes(config, ()) if place == field), [])


def inherit_annotations(class_path: str) -> None:
    """Give arguments without an annotation the type that a parent's constructor gives the argument of that name.

    Without a type the parser would pass the plain mappings of the file in place of objects.
    """
    try:
        factory = resolve(class_path)
    except Exception:  # a module that fails at its import is the parser's to report
        return
    if not inspect.isclass(factory) or not inspect.isfunction(vars(factory).get("__init__")):
        return
    own, *parents = _constructors(factory)
    for name, argument in inspect.signature(own).parameters.items():
        if argument.annotation is not argument.empty or argument.kind in VARIADIC:
            continue
        for parent in parents:
            if name in (types := _types(parent)):
                own.__annotations__[name] = types[name]
                break


def _types(constructor: Any) -> dict[str, Any]:
    try:
        return get_type_hints(constructor)
    except (NameError, TypeError):  # some types exist for type checkers only
        return {}


def _constructors(factory: type) -> list[Any]:
    """List the constructors of a class and its parents that are written in Python, its own first."""
    own = (vars(parent).get("__init__") for parent in factory.__mro__)
    return [constructor for constructor in own if inspect.isfunction(constructor)]


def importable_names(wrong: str) -> list[str]:
    """List all names that `PACKAGES` export, dotted if the wrong one is."""
    modules = [import_module(package) for package in PACKAGES]
    names = [(module.__name__, name) for module in modules for name in getattr(module, "__all__", dir(module))]
    return [f"{module}.{name}" for module, name in names] if "." in wrong else [name for _, name in names]


def _nodes(config: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield every part of a configuration with a ``class_path`` and its dotted place, the innermost first."""
    items: dict[str, Any] = {}
    if isinstance(config, list):
        items = {str(index): item for index, item in enumerate(cast("list[Any]", config))}
    elif isinstance(config, Namespace | dict):
        items = vars(config) if isinstance(config, Namespace) else cast("dict[str, Any]", config)
    for key, value in items.items():
        yield from _nodes(value, path if key in WRAPPERS else (*path, key))
    if isinstance(items.get("class_path"), str):
        yield ".".join(path), config


def _has_arguments(node: Any, names: dict[str, Any], owner: Any) -> bool:
    """Compare a part's plain arguments with a frame's local variables and its object's attributes."""
    arguments = vars(node.get("init_args") or Namespace())
    plain = {name: value for name, value in arguments.items() if isinstance(value, str | int | float)}
    return all(repr(names.get(name, getattr(owner, name, value))) == repr(value) for name, value in plain.items())


def with_our_names(value: Any) -> Any:
    """Make short names of this package's classes dotted: other imported packages may have classes of these names."""
    if isinstance(value, list):
        return [with_our_names(item) for item in value]
    if not isinstance(value, dict):
        return value
    content = {key: with_our_names(item) for key, item in cast("dict[str, Any]", value).items()}
    name = str(content.get("class_path"))
    for package in PACKAGES:
        if package.startswith("kd_lightning.") and isinstance(vars(sys.modules[package]).get(name), type):
            content["class_path"] = f"{package}.{name}"
    return content
