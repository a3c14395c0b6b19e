"""Configurations on top of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from kd_lightning.methods import read_settings

Config = dict[str, Any]
"""Plain values, as they stand in a YAML file."""


def read_yaml(path: Path) -> Config:
    """What a YAML file says.

    Raises:
        Complaint: The file cannot be read, is not YAML, is no mapping, or sets a key twice.
    """
    read_settings(path)  # for what it refuses
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def merge(base: Config, changes: Config) -> Config:
    """`changes` on top of `base`, which stays as it is: mappings key by key, anything else replaced.

    Where `changes` names another ``class_path``, the old ``init_args`` go, for they are not the new class's.

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
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(cast("Config", old), cast("Config", value))
        else:
            merged[key] = value
    return merged
