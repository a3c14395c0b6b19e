"""The keys of a compare file: their kinds and meanings, by which a file is checked, explained and edited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from kd_lightning.compare.plan.config import Config
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import suggestion
from kd_lightning.core.renamed import COMPARE_KEYS


class Key(NamedTuple):
    """A key of a mapping in a compare file."""

    kind: str
    """A name in `KINDS`."""
    meaning: str
    required: bool = False


KINDS: dict[str, tuple[type, ...]] = {"text": (str,), "a list": (list,), "a mapping": (dict,), "files": (str, list)}
"""The types that a kind of value has in YAML."""
_JSON: dict[str, Config] = {
    "text": {"type": "string"},
    "a list": {"type": "array"},
    "a mapping": {"type": "object"},
    "files": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
}
_OVERRIDES = "settings laid over the configuration, as a second `--config` of `kd-lightning fit` is"

_MEASURED: dict[str, Key] = {
    "student": Key("text", "of a LightningModule of yours: the dotted name of the network that gives the logits"),
    "monitor": Key("text", "the metric to compare by, as the module logs it; the learner's own if not given"),
    "mode": Key("text", "`max` if a larger value of `monitor` is better, else `min`"),
}

FILE: dict[str, Key] = {
    "title": Key("text", "title of the report; the file's name if not given"),
    "notes": Key("text", "what a reader must know of all groups"),
    "overrides": Key("a mapping", f"for every run: {_OVERRIDES}"),
    "groups": Key("a mapping", "the groups by name, each a table of its own", required=True),
}
GROUP: dict[str, Key] = {
    "title": Key("text", "title of the table; the group's name if not given"),
    "notes": Key("text", "what a reader must know of this table"),
    "overrides": Key("a mapping", f"for every run of the group: {_OVERRIDES}"),
    "seeds": Key("a list", "whole numbers; each variant runs once under each", required=True),
    "baseline": Key("text", "the variant with which the others are compared, seed by seed"),
    "variants": Key("a mapping", "the variants by name, each a row of the table", required=True),
    **_MEASURED,
    "for_each": Key("a mapping", "more variants: one of each configuration that a pattern finds"),
}
VARIANT: dict[str, Key] = {
    "title": Key("text", "name of the row; the variant's name if not given"),
    "config": Key("files", "configuration, or several laid over each other: a shipped name or a path", required=True),
    "overrides": Key("a mapping", f"for this variant: {_OVERRIDES}"),
    "grid": Key("a mapping", "dotted settings, each with a list of values: one variant for each combination"),
    "baseline": Key("text", "the variant to compare this one with, in place of the group's"),
    "teacher": Key("text", "the variant that teaches this one: `variant`, or `group/variant`"),
    "weights": Key("files", "networks that were trained elsewhere, one a seed: nothing is trained"),
    "evaluate": Key("text", "the network to evaluate by name, or `mean` of all; the inference network if not given"),
    **_MEASURED,
}
FOR_EACH: dict[str, Key] = {
    "configs": Key("a list", "patterns of files, relative to this one", required=True),
    "without": Key("a list", "files to leave out"),
    **{key: VARIANT[key] for key in ("overrides", "baseline", "teacher")},
}
LEVELS = {"the file": FILE, "a group": GROUP, "a variant": VARIANT, "`for_each`": FOR_EACH}


def checked(where: str, value: Any, keys: Mapping[str, Key]) -> Config:
    """Return a mapping of a compare file if its keys and their kinds are right.

    Args:
        where: The file and the place in it, for the message.
        value: The content of that place.
        keys: The keys that may stand there.

    Raises:
        UsageError: The content is no mapping, or has an unknown key, a wrong kind, or lacks a required key.
    """
    required = [name for name, key in keys.items() if key.required]
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is {value!r} and not a mapping with {' and '.join(required)}")
    content = cast("Config", value)
    for name, item in content.items():
        if name not in keys:
            if (new := COMPARE_KEYS.get(str(name))) in keys:
                raise UsageError(f"{where}: the key {name!r} is now called {new!r}")
            raise UsageError(f"{where}: there is no such key as {name!r}{suggestion(str(name), keys)}")
        if not isinstance(item, KINDS[keys[name].kind]):
            raise UsageError(f"{where}: {name} is {item!r} and not {keys[name].kind}: {keys[name].meaning}")
    for name in required:
        if not content.get(name):
            raise UsageError(f"{where}: {name} is missing or empty: {keys[name].meaning}")
    return content


def json_schema() -> Config:
    """Return the JSON Schema of a compare file, with which editors complete and check one.

    Example:
        >>> json_schema()["required"]
        ['groups']
    """
    variant, group, file = (_object(keys) for keys in (VARIANT, GROUP, FILE))
    group["properties"] |= {"for_each": _object(FOR_EACH), "variants": {"additionalProperties": variant}}
    file["properties"]["groups"] = {"type": "object", "additionalProperties": group}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A compare file", **file}


def _object(keys: Mapping[str, Key]) -> Config:
    return {
        "type": "object",
        "properties": {name: _JSON[key.kind] | {"description": key.meaning} for name, key in keys.items()},
        "required": [name for name, key in keys.items() if key.required],
        "additionalProperties": False,
    }
