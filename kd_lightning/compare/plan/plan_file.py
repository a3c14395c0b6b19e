"""Reads a compare file and builds the plan that it describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from kd_lightning.cli.configs import find_config, merge
from kd_lightning.cli.yaml_file import read_yaml
from kd_lightning.compare.plan.config import Config, texts
from kd_lightning.compare.plan.grid import points
from kd_lightning.compare.plan.schema import FILE, FOR_EACH, GROUP, VARIANT, checked
from kd_lightning.compare.plan.variants import CHECKPOINT, Group, Plan, Variant
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import suggestion
from kd_lightning.core.packaged import PREFIX, weights_path


def read_plan(path: Path) -> Plan:
    """Read a compare file and the configuration files that it names, relative to its directory.

    Raises:
        UsageError: The file, or a file that it names, has a mistake.
    """
    content = checked(str(path), read_yaml(path).values, FILE)
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
            self.groups[name] = checked(where, group, GROUP)
            _check_seeds(where, group["seeds"])
            variants: Config = {}
            for variant, value in group["variants"].items():
                place = f"{where}.variants.{_check_name(where, variant)}"
                variants |= _expanded(place, variant, checked(place, value, VARIANT))
            self.groups[name] = group | {"variants": variants}
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
        each = checked(where, group["for_each"], FOR_EACH)
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
        config, weights = self._config(where, group, content), self._weights(where, group, content)
        self.built[group_name, name] = Variant(
            group=group_name,
            name=name,
            title=content.get("title", name),
            config=config,
            seeds=tuple(group["seeds"][: len(weights) or None]),
            teacher=self._other(where, "teacher", group_name, content.get("teacher")),
            baseline=self._other(where, "baseline", group_name, None if baseline == name else baseline),
            evaluate=content.get("evaluate"),
            student=content.get("student", group.get("student")),
            monitor=_monitor(where, group, content),
            grid=f"{group_name}/{content['grid']}" if "values" in content else None,
            values=content.get("values", {}),
            weights=weights,
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

    def _weights(self, where: str, group: Config, content: Config) -> tuple[str, ...]:
        """Find the files of networks that were trained elsewhere: at most one for each seed."""
        names = [str(name) for name in _listed(content.get("weights", []))]
        if len(names) > len(group["seeds"]):
            raise UsageError(f"{where}: weights has {len(names)} files for {len(group['seeds'])} seeds: drop some")
        found: list[str] = []
        for name in names:
            try:
                beside = self.path.parent / weights_path(name)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from None
            if not (beside.is_file() or weights_path(name).is_file()):
                raise UsageError(f"{where}: weights has {name!r}, and there is no such file: correct its path")
            found.append(str(beside) if beside.is_file() and not name.startswith(PREFIX) else name)
        return tuple(found)

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


def _monitor(where: str, group: Config, content: Config) -> tuple[str, str] | None:
    monitor, mode = (content.get(key, group.get(key)) for key in ("monitor", "mode"))
    if (monitor is None) != (mode is None):
        missing = "mode: max if a larger value is better, else min" if mode is None else "monitor: a metric"
        raise UsageError(f"{where}: monitor and mode belong together: add {missing}")
    if mode not in (None, "min", "max"):
        raise UsageError(f"{where}: mode is {mode!r}: max if a larger value of {monitor} is better, else min")
    return None if monitor is None else (str(monitor), str(mode))


def _expanded(where: str, name: str, content: Config) -> Config:
    """Make the variants of a grid, or the one variant without one."""
    if "grid" not in content:
        return {name: content}
    title = content.get("title", name)
    common = {key: value for key, value in content.items() if key != "grid"}
    return {
        f"{name}-{point.name}": common
        | {"title": f"{title}, {point.title}", "overrides": merge(content.get("overrides", {}), point.overrides)}
        | {"grid": name, "values": point.values}
        for point in points(f"{where}.grid", content["grid"])
    }


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _check_seeds(where: str, seeds: list[Any]) -> None:
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        raise UsageError(f"{where}: seeds is {seeds} and not a list of different whole numbers, such as [0, 1, 2]")


def _check_name(where: str, name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{where}: {name!r} names a directory: use letters, digits, dots, dashes and underscores")
    return name
