"""The settings in which the variants of a comparison differ, flat and under short names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from kd_lightning.compare.plan.config import Config
from kd_lightning.compare.plan.variants import Variant

Setting = bool | float | str
"""A setting that is shown."""
OF_DISTILLATION = ("temperature", "weight", "lr")
NEVER = ("default_root_dir", "checkpoint", "seed", "seed_everything")
"""Settings that each run gets from the comparison."""


def differing_settings(variants: Sequence[Variant]) -> list[dict[str, Setting]]:
    """Return the settings of each variant in which it differs from another, after its group, name and teacher.

    The values of one setting have one type for all variants: a mixture becomes texts.
    """
    flat = [dict(flattened(variant.config)) for variant in variants]
    keys = [key for key in dict.fromkeys(key for settings in flat for key in settings) if _is_shown(key, flat)]
    texts = {key for key in keys if len({_kind(settings[key]) for settings in flat if key in settings}) > 1}
    rows: list[dict[str, Setting]] = []
    for variant, settings in zip(variants, flat, strict=True):
        labels = {"group": variant.group, "variant": variant.name}
        labels["teacher"] = variant.teacher.path if variant.teacher else "none"
        shown = {key: settings[key] for key in keys if key in settings and key not in labels}
        rows.append(labels | {key: str(value) if key in texts else value for key, value in shown.items()})
    return rows


def is_of_distillation(key: str) -> bool:
    """True for temperatures, weights and learning rates, which are shown even where all variants agree."""
    return key.rpartition(".")[2] in OF_DISTILLATION


def flattened(config: Config) -> Iterator[tuple[str, Setting]]:
    """Yield the settings of a configuration under short names, with classes without their packages.

    Example:
        >>> kd = {"loss": {"class_path": "kd_lightning.losses.KDLoss", "init_args": {"temperature": 3.0}}, "weight": 1}
        >>> dict(flattened({"model": {"class_path": "OfflineDistiller", "init_args": {"terms": {"kd": kd}}}}))
        {'model': 'OfflineDistiller', 'kd.loss': 'KDLoss', 'kd.temperature': 3.0, 'kd.weight': 1}
    """
    for key, value in config.items():
        for name, setting in _flattened(key, value):
            short = re.sub(r"^terms\.([^.]+)\.(?:loss\.)?", r"\1.", name.removeprefix("model."))
            yield short, setting


def _flattened(name: str, value: Any) -> Iterator[tuple[str, Setting]]:
    if isinstance(value, bool | int | float | str):
        yield name, value
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        if items:
            yield name, ", ".join(_short(item) for item in items)
        for item in items:
            if isinstance(item, dict) and "class_path" in item:
                yield from _flattened(f"{name}.{_short(item)}", item.get("init_args", {}))
    elif isinstance(value, dict):
        content = cast("Config", value)
        if "class_path" in content:
            yield name, _short(content)
            content = content.get("init_args") or {}
        for key, item in content.items():
            yield from _flattened(f"{name}.{key}", item)


def _short(item: Any) -> str:
    """The name of a class without its package, or the value as text."""
    return str(item["class_path"]).rpartition(".")[2] if isinstance(item, dict) and "class_path" in item else str(item)


def _is_shown(key: str, flat: Sequence[dict[str, Setting]]) -> bool:
    differs = len({repr(settings.get(key)) for settings in flat}) > 1
    return key.rpartition(".")[2] not in NEVER and (differs or is_of_distillation(key))


def _kind(value: Setting) -> type:
    return type(value) if isinstance(value, bool | str) else float
