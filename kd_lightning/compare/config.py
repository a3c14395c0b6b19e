"""Configurations as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kd_lightning.cli.configs import read_settings

Config = dict[str, Any]
"""Plain values, as they stand in a YAML file."""


def read_yaml(path: Path) -> Config:
    """What a YAML file says.

    Raises:
        UsageError: The file cannot be read, is not YAML, is no mapping, or sets a key twice.
    """
    read_settings(path)  # for what it refuses
    return yaml.safe_load(path.read_text(encoding="utf-8"))
