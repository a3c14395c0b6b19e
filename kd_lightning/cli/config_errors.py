"""From an error deep inside a parser or a constructor to the setting that caused it."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple, cast

from jsonargparse import Namespace

from kd_lightning.cli.configs import Setting
from kd_lightning.cli.errors import did_you_mean, nearest
from kd_lightning.core.renamed import renamed_argument, renamed_class

_WRAPPERS = ("init_args", "class_path", "dict_kwargs")
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
"""Where the classes are that a YAML file may name without their module."""


class Blame(NamedTuple):
    """Whose error it was."""

    field: str
    """The part of the configuration whose object was at work, or nothing if there was none."""
    made: bool
    """Whether that object was just being made."""


def explain(error: BaseException, settings: Sequence[Setting], options: Sequence[str]) -> str:
    """Why jsonargparse refuses a configuration, in one line: where, what, and the nearest right name.

    Its errors form a chain, outermost first: each names a key or a class on the way down, and the last one says what is
    wrong. Which item of a list or a mapping was meant is not in it, so the place is looked up in what was given.

    Args:
        error: What the parser raised.
        settings: Everything that the files and options set.
        options: Every option that the parser has, dotted and without dashes.
    """
    chain = _read(error)
    keys, reason = chain.keys, chain.reason
    owner = chain.owner or _class_at(settings, keys)

    if found := re.match(r"(?:Group '(?P<group>.+)' does not accept option|Option) '(?P<name>[^'.]+)", reason):
        place = [*keys, *([found["group"]] if found["group"] else [])]
        known = _parameters(owner) if owner else _below(options, place)
        whose = f"{_short(owner)} has no such setting" if owner else "there is no such setting"
        if owner and (new := renamed_argument(_resolve(owner), found["name"])):
            return at(settings, [*place, found["name"]], f"{whose}: it is now called {new!r}")
        return at(settings, [*place, found["name"]], whose + nearest(found["name"], known))
    if found := re.match(r"unrecognized arguments: (\S+)", reason):
        return f"{found[1]}: there is no such option" + nearest(found[1].lstrip("-").partition("=")[0], options)
    if found := re.match(r"argument (?:-\w/)?(\S+): (.+)", reason):
        return f"{found[1]}: {found[2]}"
    if found := re.search(r"the following arguments are required: (.+)", reason):
        if not keys:
            return f"{found[1]}: not given: name a YAML file that does, with --config"
        return at(settings, keys, f"{found[1]} is missing" + (f": {_short(owner)} needs it" if owner else ""))
    if found := re.match(r"Expected a dot import path string: (.+)|No module named|module '.+' has no attr", reason):
        name = found[1] or owner or ""
        if new := renamed_class(name):
            return at(settings, keys, f"{name!r} is now {new}", name)
        return at(settings, keys, f"there is no {name!r}" + nearest(name, _importable(name)), name)
    if found := re.match(r"Import path (\S+) does not correspond to a subclass of (.+)", reason):
        return at(settings, keys, f"{found[1]} is no {found[2]}", found[1])
    if found := re.match(r"Not a valid subclass of (\S+?)\. Got value: (.+)", reason):
        return at(settings, keys, f"expected a {found[1]} (class_path and init_args), got {_brief(found[2])}", found[2])
    if found := re.match(r"Expected a (.+?)\. Got value: (.*)", reason, re.DOTALL):
        expected, got = chain.types or found[1], found[2]
        choices = re.findall(r"'([^']+)'", "".join(re.findall(r"Literal(\[.*?\])", expected)))
        return at(settings, keys, f"expected {_plain(expected)}, got {_brief(got)}" + did_you_mean(got, choices), got)
    return at(settings, keys, reason.partition("\n")[0])


def at(settings: Sequence[Setting], place: Sequence[str], what: str, value: str | None = None) -> str:
    """A complaint about a place: in which line of which file it is, its dotted name, and what is wrong.

    Args:
        settings: Everything that was given.
        place: The keys that lead there; some in between may be missing.
        what: What is wrong.
        value: What stands there, where it is known, to tell one place from another.
    """
    setting = _find(settings, place, value)
    field = _field(setting.path if setting else place) or "the configuration"
    return f"{setting.where}: {field}: {what}" if setting and setting.where else f"{field}: {what}"


def blame(error: BaseException, config: Any) -> Blame:
    """Whose error it was, among the objects that a configuration describes: the innermost at work.

    Args:
        error: What a constructor or a method raised, with its traceback.
        config: The parsed configuration.
    """
    parts = [(field, node, _resolve(node["class_path"])) for field, node in _nodes(config, ())]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        names = frame.f_locals
        at_work = names.get("self")
        same = [
            (field, node, inspect.isclass(factory))
            for field, node, factory in parts
            if factory and (type(at_work) is factory or getattr(factory, "__code__", None) is frame.f_code)
        ]
        if same:
            # Two terms may have the same loss: the one that is meant has the same arguments.
            meant = [field for field, node, _ in same if _agrees(node, names, at_work)]
            return Blame([*meant, same[0][0]][0], not same[0][2] or frame.f_code.co_name == "__init__")
    if any(frame.f_code.co_name == "instantiate_trainer" for frame in frames):
        return Blame("trainer", made=True)
    return Blame("", made=False)


def nulls(config: Any) -> Iterator[tuple[str, str]]:
    """Fields that are null though their type is not, and the type: the parser lets them pass, constructors stumble."""
    for field, node in _nodes(config, ()):
        factory = _resolve(node["class_path"])
        try:
            # the type by its name, as it is written: some types are known to a type checker only
            signature = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)
        except (TypeError, ValueError):  # written in C
            continue
        for name, value in (node.get("init_args") or {}).items():
            parameter = signature.parameters.get(name)
            if value is None and parameter is not None and parameter.default is not None:
                expected = inspect.formatannotation(parameter.annotation)
                if not re.search(r"None|Optional|Any\b|_empty", expected):
                    yield f"{field}.{name}", expected.strip("'")


# ---- what jsonargparse says


class _Chain(NamedTuple):
    keys: list[str]
    owner: str | None
    """The innermost class that was named."""
    types: str | None
    """The alternatives that the innermost key has."""
    reason: str


def _read(error: BaseException) -> _Chain:
    keys: list[str] = []
    owner = types = None
    reason = text = ""
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if found := re.match(r'Parser key "([^"]+)"', text):
            if found[1] != ".".join(keys[-found[1].count(".") - 1 :]):  # each comes two or three times over
                keys += found[1].split(".")
            owner = types = None
        elif found := re.match(r"Problem with given class_path '([^']+)'", text):
            owner, types = found[1], None
        elif text.startswith("Does not validate against any of the Union"):
            types = text.partition("Subtypes: ")[2].partition("\n")[0]
        else:
            reason = text
        link = link.__cause__
    return _Chain(keys, owner, types, reason or text)


def _plain(types: str) -> str:
    """Types as a person writes them: ``[<class 'int'>, <class 'NoneType'>]`` is ``int or null``."""
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types.strip()).replace("NoneType", "null")
    types = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda found: found[1].replace(", ", " or "), types)
    types = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", types)
    return " or ".join(re.split(r", (?![^\[]*\])", types[1:-1])) if types.startswith("[") else types


def _brief(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= 40 else f"{value[:37]}..."


# ---- what was given


def _find(settings: Sequence[Setting], place: Sequence[str], value: str | None) -> Setting | None:
    """The setting at a place: rather one of that value, rather with fewer keys in between, rather the latest.

    Of a place and its ``class_path`` and ``init_args``, which are at the same place, it is the place itself.
    """

    def keys_between(setting: Setting) -> int | None:
        path = [key for key in setting.path if key not in _WRAPPERS]
        rest = iter(path)
        ends_fit = bool(place) and bool(path) and (path[0], path[-1]) == (place[0], place[-1])
        return len(path) - len(place) if ends_fit and all(key in rest for key in place) else None

    found = [(setting, between) for setting in settings if (between := keys_between(setting)) is not None]
    if value is not None and not any(setting.value == value for setting, _ in found):
        # an item of a list or a mapping, whose key is not known: what stands there tells
        found += [(s, len(s.path)) for s in settings if s.value == value and [*s.path[: len(place)]] == [*place]]
    ranked = sorted(
        enumerate(found), key=lambda item: (item[1][0].value == value, -item[1][1], -len(item[1][0].path), item[0])
    )
    return ranked[-1][1][0] if ranked else None


def _class_at(settings: Sequence[Setting], place: Sequence[str]) -> str | None:
    setting = _find([s for s in settings if s.path[-1:] == ("class_path",)], place, None)
    return setting.value if setting else None


def _field(path: Sequence[str]) -> str:
    return ".".join(key for key in path if key not in _WRAPPERS)


def _nodes(config: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Every part of a configuration that has a ``class_path``, the innermost first."""
    items: dict[str, Any] = {}
    if isinstance(config, list):
        items = {str(index): item for index, item in enumerate(cast("list[Any]", config))}
    elif isinstance(config, Namespace | dict):
        items = vars(config) if isinstance(config, Namespace) else cast("dict[str, Any]", config)
    for key, value in items.items():
        yield from _nodes(value, path if key in _WRAPPERS else (*path, key))
    if isinstance(items.get("class_path"), str):
        yield ".".join(path), config


def _agrees(node: Any, names: dict[str, Any], at_work: Any) -> bool:
    arguments = vars(node.get("init_args") or Namespace())
    plain = {name: value for name, value in arguments.items() if isinstance(value, str | int | float)}
    return all(repr(names.get(name, getattr(at_work, name, value))) == repr(value) for name, value in plain.items())


# ---- what there is


def _resolve(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _short(class_path: str | None) -> str:
    return (class_path or "").rpartition(".")[2]


def _parameters(class_path: str) -> list[str]:
    factory = _resolve(class_path)
    return list(inspect.signature(factory).parameters) if callable(factory) else []


def _below(options: Sequence[str], place: Sequence[str]) -> set[str]:
    prefix = "".join(f"{key}." for key in place)
    return {option.removeprefix(prefix).partition(".")[0] for option in options if option.startswith(prefix)}


def _importable(wrong: str) -> list[str]:
    modules = [import_module(package) for package in PACKAGES]
    names = [(module.__name__, name) for module in modules for name in getattr(module, "__all__", dir(module))]
    return [f"{module}.{name}" for module, name in names] if "." in wrong else [name for _, name in names]
