"""Configurations as plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import yaml

from kd_lightning.cli.configs import read_settings

Config = dict[str, Any]
"""The plain values of a YAML file."""
LOADERS = ("load_teacher", "load_student")
"""Functions that load a checkpoint into the network that they are given."""


def read_yaml(path: Path) -> Config:
    """Read a YAML file as plain values.

    Raises:
        UsageError: The file cannot be read, is not YAML, is no mapping, or sets a key twice.
    """
    read_settings(path)  # for its checks
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def network_key(config: Config) -> str:
    """Return the student's configuration as text: equal for runs that build equal networks."""
    return json.dumps(config.get("model", {}).get("init_args", {}).get("student"), sort_keys=True)


def without_checkpoints(value: Any) -> Any:
    """Return a configuration in which networks are built, not loaded from files that may not exist yet.

    Example:
        >>> without_checkpoints({"class_path": "load_teacher", "init_args": {"network": {"class_path": "MLP"}}})
        {'class_path': 'MLP'}
    """
    if isinstance(value, list):
        return [without_checkpoints(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    content = cast("Config", value)
    loads = str(content.get("class_path")).rpartition(".")[2] in LOADERS
    network = content.get("init_args", {}).get("network") if loads else None
    if network is not None:
        return without_checkpoints(network)
    return {key: without_checkpoints(item) for key, item in content.items()}
