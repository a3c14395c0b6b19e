"""Reads a compare file and builds the plan that it describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from kd_lightning.cli.configs import find_config, merge
from kd_lightning.cli.yaml_file import read_yaml
from kd_lightning.compare.plan.config import Config, texts
from kd_lightning.compare.plan.variants import CHECKPOINT, Group, Plan, Variant
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import suggestion
from kd_lightning.core.renamed import COMPARE_KEYS

_KINDS: dict[str, tuple[type, ...]] = {"text": (str,), "a list": (list,), "a mapping": (dict,), "files": (str, list)}
_PLAN = {"title": "text", "notes": "text", "overrides": "a mapping", "groups": "a mapping"}
_GROUP = {
    "title": "text",
    "notes": "text",
    "overrides": "a mapping",
    "seeds": "a list",
    "baseline": "text",
    "variants": "a mapping",
    "for_each": "a mapping",
}
_FOR_EACH = {
    "configs": "a list",
    "without": "a list",
    "overrides": "a mapping",
    "baseline": "text",
    "teacher": "text",
}
_VARIANT = {
    "title": "text",
    "config": "files",
    "overrides": "a mapping",
    "baseline": "text",
    "teacher": "text",
    "evaluate": "text",
}


def read_plan(path: Path) -> Plan:
    """Read a compare file and the configuration files that it names, relative to its directory.

    Raises:
        UsageError: The file, or a file that it names, has a mistake.
    """
    content = _checked(str(path), read_yaml(path).values, _PLAN, required=["groups"])
    build = _Builder(path, content)
    groups = [build.group(name) for name in content["groups"]]
    return Plan(content.get("title", path.stem), content.get("notes", ""), groups)


class _Builder:
    """Builds each variant once, and a teacher before its students."""

    def __init__(self, path: Path, content: Config) -> None:
        self.path, self.content = path, content
        self.groups: dict[str, Config] = {}
        for name, group in content["groups"].items():
            where = f"{path}: groups.{_check_name(str(path), name)}"
            self.groups[name] = _checked(where, group, _GROUP, required=["seeds", "variants"])
            _check_seeds(where, group["seeds"])
            for variant, value in group["variants"].items():
                _checked(f"{where}.variants.{_check_name(where, variant)}", value, _VARIANT, required=["config"])
        for name, group in self.groups.items():
            if "for_each" in group:
                group["variants"] |= self._found(f"{path}: groups.{name}.for_each", group)
        self.built: dict[tuple[str, str], Variant] = {}
        self.building: list[str] = []

    def group(self, name: str) -> Group:
        group = self.groups[name]
        variants = [self.variant(name, variant) for variant in group["variants"]]
        return Group(name, group.get("title", name), group.get("notes", ""), variants)

    def _found(self, where: str, group: Config) -> Config:
        """Make a variant of each configuration that a pattern of `for_each` finds and no variant of the plan names."""
        each = _checked(where, group["for_each"], _FOR_EACH, required=["configs"])
        variants = [variant for other in self.groups.values() for variant in other["variants"].values()]
        files = [file for variant in variants for file in _listed(variant["config"])] + each.get("without", [])
        named = {(self.path.parent / str(file)).resolve() for file in files}
        settings = {key: each[key] for key in ("overrides", "baseline", "teacher") if key in each}
        found: Config = {}
        for pattern in map(str, each["configs"]):
            path = self.path.parent / pattern
            matches = sorted(file.resolve() for file in path.parent.glob(path.name))
            if not matches:
                raise UsageError(f"{where}: configs has the pattern {pattern!r}, which matches no file: correct it")
            for file in matches:
                if file not in named:
                    name = file.stem.replace("_", "-")
                    name = f"{file.parent.name}-{name}" if name in group["variants"] or name in found else name
                    found[name] = {"title": name.replace("-", " "), "config": str(file), **settings}
        return found

    def variant(self, group_name: str, name: str) -> Variant:
        if (group_name, name) in self.built:
            return self.built[group_name, name]
        group = self.groups[group_name]
        content = group["variants"][name]
        where = f"{self.path}: groups.{group_name}.variants.{name}"
        if where in self.building:
            raise UsageError(f"{where}: is its own teacher or baseline, directly or through others: name another")
        self.building.append(where)
        baseline = content.get("baseline", group.get("baseline"))
        config = self._config(where, group, content)
        self.built[group_name, name] = Variant(
            group=group_name,
            name=name,
            title=content.get("title", name),
            config=config,
            seeds=tuple(group["seeds"]),
            teacher=self._other(where, "teacher", group_name, content.get("teacher")),
            baseline=self._other(where, "baseline", group_name, None if baseline == name else baseline),
            evaluate=content.get("evaluate"),
            checkpoints=self._checkpoints(where, group_name, config),
        )
        self.building.pop()
        return self.built[group_name, name]

    def _config(self, where: str, group: Config, content: Config) -> Config:
        config: Config = {}
        for name in map(str, _listed(content["config"])):
            beside = self.path.parent / name
            try:
                config = merge(config, read_yaml(beside if beside.is_file() else find_config(name)).values)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from None
        for changes in (self.content, group, content):
            config = merge(config, changes.get("overrides", {}))
        return config

    def _checkpoints(self, where: str, group_name: str, config: Config) -> dict[str, tuple[Variant, int]]:
        """Find the variants that values such as ``@group/variant+1`` name."""
        found: dict[str, tuple[Variant, int]] = {}
        for value in texts(config):
            if named := CHECKPOINT.fullmatch(value):
                other = self._other(where, "run to take a checkpoint from", group_name, named["variant"])
                assert other is not None
                found[value] = other, int(named["next"] or 0)
        return found

    def _other(self, where: str, key: str, group_name: str, reference: str | None) -> Variant | None:
        """Find the variant that a key refers to: ``group/variant``, or ``variant`` in the same group."""
        if reference is None:
            return None
        other_group, _, name = reference.rpartition("/")
        other_group = other_group or group_name
        if name not in self.groups.get(other_group, {}).get("variants", {}):
            there = list(self.groups[group_name]["variants"])
            if key != "baseline":
                there += [f"{other}/{variant}" for other, group in self.groups.items() for variant in group["variants"]]
            raise UsageError(f"{where}: there is no {key} {reference!r}{suggestion(reference, there)}")
        if key == "baseline" and other_group != group_name:
            raise UsageError(f"{where}: baseline {reference!r} has other data or seeds: name one of the same group")
        return self.variant(other_group, name)


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _checked(where: str, value: Any, kinds: dict[str, str], required: list[str]) -> Config:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is {value!r} and not a mapping with {' and '.join(required)}")
    content = cast("Config", value)
    for key, item in content.items():
        if key not in kinds:
            if (new := COMPARE_KEYS.get(str(key))) in kinds:
                raise UsageError(f"{where}: the key {key!r} is now called {new!r}")
            raise UsageError(f"{where}: there is no such key as {key!r}{suggestion(str(key), kinds)}")
        if not isinstance(item, _KINDS[kinds[key]]):
            raise UsageError(f"{where}: {key} is {item!r} and not {kinds[key]}")
    for key in required:
        if not content.get(key):
            raise UsageError(f"{where}: {key} is missing or empty")
    return content


def _check_seeds(where: str, seeds: list[Any]) -> None:
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        raise UsageError(f"{where}: seeds is {seeds} and not a list of different whole numbers, such as [0, 1, 2]")


def _check_name(where: str, name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{where}: {name!r} names a directory: use letters, digits, dots, dashes and underscores")
    return name
