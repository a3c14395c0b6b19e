"""Hyper-parameters of a checkpoint: the constructor arguments that are plain values."""

from __future__ import annotations

import inspect
from typing import cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.parsing import collect_init_args

from kd_lightning.core.lightning_internals import INSTANTIATOR


def save_plain_hyperparameters(module: LightningModule, base: type[LightningModule]) -> None:
    """Save the constructor arguments that are plain values, so that checkpoints load without pickled code.

    From the command line Lightning supplies the parsed configuration, plain and complete, and marks it with
    ``_instantiator``. In Python it collects the arguments themselves; networks, losses and functions are excluded
    *before* Lightning deep-copies them. A value decides by its type, never by its annotation, so that a subclass in
    any module works.

    Args:
        module: The module under construction: this is called in the constructor of `base`.
        base: The class from which downwards constructors count.
    """
    frame = inspect.currentframe()
    assert frame is not None
    ignored: dict[str, None] = {}
    for arguments in collect_init_args(frame, [], classes=(base,)):  # of `base` and of each class below it
        ignored |= {name: None for name, value in arguments.items() if not is_plain(value)}
    module.save_hyperparameters(ignore=[*ignored], logger=False)
    if INSTANTIATOR in module.hparams:
        module.save_hyperparameters(logger=False)


def is_plain(value: object) -> bool:
    """Tell whether any checkpoint can hold a value: None, numbers, text, and lists, tuples and dicts of them.

    Example:
        >>> import torch
        >>> is_plain({"layers": ["conv.1", "conv.3"], "width": 8}), is_plain(torch.nn.ReLU())
        (True, False)
    """
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return all(is_plain(key) and is_plain(item) for key, item in items)
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(is_plain, cast("list[object]", value)))
    return value is None or type(value) in (bool, int, float, str)
