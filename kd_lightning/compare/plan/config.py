"""Configurations as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from kd_lightning.cli.configs import merge

Config = dict[str, Any]
"""The plain values of a YAML file."""


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a configuration.

    Example:
        >>> list(texts({"model": {"path": "@a/b"}, "layers": ["conv.0", 3]}))
        ['@a/b', 'conv.0']
    """
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(item)


def network_key(config: Config) -> str:
    """Return the student's configuration as text: equal for runs that build equal networks.

    A module without an argument ``student`` builds its network itself, from all of its arguments.
    """
    model = config.get("model", {})
    return json.dumps(model.get("init_args", {}).get("student", model), sort_keys=True)


def with_teacher(config: Config, checkpoint: str) -> Config:
    """Return a configuration with its teacher's checkpoint: that of the model, or of a callback `Distillation`.

    Example:
        >>> with_teacher({"model": {"class_path": "OfflineDistiller"}}, "a.ckpt")["model"]["init_args"]
        {'teacher': {'init_args': {'checkpoint': 'a.ckpt'}}}
        >>> drop_in = {"trainer": {"callbacks": [{"class_path": "Distillation"}]}}
        >>> with_teacher(drop_in, "a.ckpt")["trainer"]["callbacks"][0]["init_args"]
        {'teacher': {'init_args': {'checkpoint': 'a.ckpt'}}}
    """
    place: Config = {"init_args": {"teacher": {"init_args": {"checkpoint": checkpoint}}}}
    callbacks = cast("list[Config]", config.get("trainer", {}).get("callbacks") or [])
    drop_ins = [each for each in callbacks if str(each.get("class_path")).rpartition(".")[2] == "Distillation"]
    if not drop_ins:
        return merge(config, {"model": place})
    placed = [merge(each, place) if each is drop_ins[0] else each for each in callbacks]
    return merge(config, {"trainer": {"callbacks": placed}})


def without_checkpoints(value: Any) -> Any:
    """Return a configuration in which networks are built, not loaded from files that may not exist yet.

    A teacher is frozen, as `load_teacher` freezes it.

    Example:
        >>> without_checkpoints({"class_path": "load_student", "init_args": {"network": {"class_path": "MLP"}}})
        {'class_path': 'MLP'}
    """
    if isinstance(value, list):
        return [without_checkpoints(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    content = cast("Config", value)
    loader = str(content.get("class_path")).rpartition(".")[2]
    network = content.get("init_args", {}).get("network") if loader in ("load_teacher", "load_student") else None
    if network is None:
        return {key: without_checkpoints(item) for key, item in content.items()}
    built = without_checkpoints(network)
    freezes = {"class_path": "kd_lightning.networks.freeze", "init_args": {"network": built}}
    return freezes if loader == "load_teacher" else built
