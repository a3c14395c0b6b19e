"""jsonargparse's errors in one line: the file's line, the setting, the mistake and the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from kd_lightning.cli.components import WRAPPERS, importable_names, parameters, resolve
from kd_lightning.cli.yaml_file import Setting
from kd_lightning.core.lookup import did_you_mean, suggestion
from kd_lightning.core.renamed import renamed_argument, renamed_class


def describe_parse_error(error: BaseException, settings: Sequence[Setting], options: Sequence[str]) -> str:
    """Describe in one line why jsonargparse refuses a configuration.

    Its errors form a chain, outermost first: each names a key or a class on the way down, and the last one states the
    mistake. None of them tells the item of a list or a mapping, so the place is looked up in the given settings.

    Args:
        error: The parser's error.
        settings: Everything that the files and options set.
        options: All options of the parser, dotted and without dashes.
    """
    chain = _read(error)
    keys, reason = chain.keys, chain.reason
    owner = chain.owner or _class_at(settings, keys)

    if found := re.match(r"(?:Group '(?P<group>.+)' does not accept option|Option) '(?P<name>[^'.]+)", reason):
        place = [*keys, *([found["group"]] if found["group"] else [])]
        known = parameters(owner) if owner else _options_below(options, place)
        message = f"{_short(owner)} has no such setting" if owner else "there is no such setting"
        if owner and (new := renamed_argument(resolve(owner), found["name"])):
            return with_location(settings, [*place, found["name"]], f"{message}: it is now called {new!r}")
        return with_location(settings, [*place, found["name"]], message + suggestion(found["name"], known))
    if found := re.match(r"unrecognized arguments: (\S+)", reason):
        return f"{found[1]}: there is no such option" + suggestion(found[1].lstrip("-").partition("=")[0], options)
    if found := re.match(r"argument (?:-\w/)?(\S+): (.+)", reason):
        return f"{found[1]}: {found[2]}"
    if found := re.search(r"the following arguments are required: (.+)", reason):
        if not keys:
            return f"{found[1]} is missing: name a YAML file that sets it, with --config"
        return with_location(
            settings, keys, f"{found[1]} is missing" + (f": {_short(owner)} needs it" if owner else "")
        )
    if found := re.match(r"Expected a dot import path string: (.+)|No module named|module '.+' has no attr", reason):
        name = found[1] or owner or ""
        if new := renamed_class(name):
            return with_location(settings, keys, f"{name!r} is now {new}", name)
        return with_location(settings, keys, f"there is no {name!r}" + suggestion(name, importable_names(name)), name)
    if found := re.match(r"Import path (\S+) does not correspond to a subclass of (.+)", reason):
        return with_location(settings, keys, f"{found[1]} is no {found[2]}", found[1])
    if found := re.match(r"Not a valid subclass of (\S+?)\. Got value: (.+)", reason):
        message = f"expected a {found[1]} (class_path and init_args), got {_shortened(found[2])}"
        return with_location(settings, keys, message, found[2])
    if found := re.match(r"Expected a (.+?)\. Got value: (.*)", reason, re.DOTALL):
        expected, got = chain.types or found[1], found[2]
        choices = re.findall(r"'([^']+)'", "".join(re.findall(r"Literal(\[.*?\])", expected)))
        message = f"expected {_plain_type(expected)}, got {_shortened(got)}" + did_you_mean(got, choices)
        return with_location(settings, keys, message, got)
    return with_location(settings, keys, reason.partition("\n")[0])


def with_location(settings: Sequence[Setting], place: Sequence[str], message: str, value: str | None = None) -> str:
    """Prefix a message with the file and line of a setting, and its dotted name.

    Args:
        settings: Everything that the files and options set.
        place: The keys that lead to the setting; some in between may be missing.
        message: The mistake.
        value: The setting's value, where known: it tells one place from another.
    """
    setting = _find(settings, place, value)
    path = setting.path if setting else place
    field = ".".join(key for key in path if key not in WRAPPERS) or "the configuration"
    return f"{setting.where}: {field}: {message}" if setting and setting.where else f"{field}: {message}"


# ---- jsonargparse's messages


class _Chain(NamedTuple):
    keys: list[str]
    owner: str | None
    """The innermost class that was named."""
    types: str | None
    """The alternative types of the innermost key."""
    reason: str


def _read(error: BaseException) -> _Chain:
    keys: list[str] = []
    owner = types = None
    reason = text = ""
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if found := re.match(r'Parser key "([^"]+)"', text):
            if found[1] != ".".join(keys[-found[1].count(".") - 1 :]):  # each is repeated two or three times
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


def _plain_type(types: str) -> str:
    """Format types in YAML's words: ``[<class 'int'>, <class 'NoneType'>]`` becomes ``int or null``."""
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types.strip()).replace("NoneType", "null")
    types = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda found: found[1].replace(", ", " or "), types)
    types = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", types)
    return " or ".join(re.split(r", (?![^\[]*\])", types[1:-1])) if types.startswith("[") else types


def _shortened(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= 40 else f"{value[:37]}..."


def _short(class_path: str | None) -> str:
    return (class_path or "").rpartition(".")[2]


# ---- the given settings


def _find(settings: Sequence[Setting], place: Sequence[str], value: str | None) -> Setting | None:
    """Find the setting at a place: one of that value first, then one with fewer keys in between, then the latest.

    ``class_path`` and ``init_args`` have the place of their owner, which is preferred to them.
    """

    def keys_between(setting: Setting) -> int | None:
        path = [key for key in setting.path if key not in WRAPPERS]
        rest = iter(path)
        ends_fit = bool(place) and bool(path) and (path[0], path[-1]) == (place[0], place[-1])
        return len(path) - len(place) if ends_fit and all(key in rest for key in place) else None

    found = [(setting, between) for setting in settings if (between := keys_between(setting)) is not None]
    if value is not None and not any(setting.value == value for setting, _ in found):
        # an item of a list or a mapping, whose key is unknown: its value identifies it
        found += [(s, len(s.path)) for s in settings if s.value == value and [*s.path[: len(place)]] == [*place]]
    ranked = sorted(
        enumerate(found), key=lambda item: (item[1][0].value == value, -item[1][1], -len(item[1][0].path), item[0])
    )
    return ranked[-1][1][0] if ranked else None


def _class_at(settings: Sequence[Setting], place: Sequence[str]) -> str | None:
    setting = _find([s for s in settings if s.path[-1:] == ("class_path",)], place, None)
    return setting.value if setting else None


def _options_below(options: Sequence[str], place: Sequence[str]) -> set[str]:
    prefix = "".join(f"{key}." for key in place)
    return {option.removeprefix(prefix).partition(".")[0] for option in options if option.startswith(prefix)}
