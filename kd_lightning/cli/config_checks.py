"""Checks of a configuration's values: what the parser and Lightning accept in silence, or refuse with a traceback."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from kd_lightning.cli.components import WRAPPERS, argument_names
from kd_lightning.cli.yaml_file import Setting
from kd_lightning.core.failures import shortened
from kd_lightning.core.lookup import suggestion

NULLS = ("", "~", "null", "Null", "NULL")
LEAST: dict[str, tuple[int, str]] = {
    "accumulate_grad_batches": (1, "1 for a step after every batch"),
    "check_val_every_n_epoch": (1, "1 for every epoch, or null with a val_check_interval in batches"),
    "min_epochs": (1, "null for none"),
    "min_steps": (1, "null for none"),
    "num_nodes": (1, "1 for a single machine"),
    "log_every_n_steps": (0, "50, or 0 to log no step"),
    "reload_dataloaders_every_n_epochs": (0, "0 to keep the loaders"),
    "fast_dev_run": (0, "false to train"),
    "num_sanity_val_steps": (-1, "0 for no validation before the training"),
}
"""The least whole number of each setting, and one to use instead."""
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
"""Settings that are a number of batches, or a share of all."""
TRAINS_NOTHING = {
    "max_epochs": "1 or more, or -1 for no limit",
    "max_steps": "1 or more, or -1 for no limit",
    "limit_train_batches": "1 or more batches, or a share such as 0.5",
}
"""Settings that must not be 0 in a fit, and what to use instead."""


def section_faults(settings: Sequence[Setting], options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each setting of a file that has the wrong form, or is unknown and empty: the parser passes over these.

    Args:
        settings: Everything that the files and options set.
        options: All options of the parser, dotted.
    """
    sections = {option.partition(".")[0] for option in options}
    trainer = {option.split(".")[1] for option in options if option.startswith("trainer.")}
    filled = {setting.path[:-1] for setting in settings}
    lists = {setting.path[:-1] for setting in settings if setting.path[-1:] == ("0",)}
    for path, value, where in settings:
        if not where or not path:
            continue
        place = ".".join(path)
        written = "a list" if path in lists else value or "null"
        is_section = path in (("model",), ("data",), ("trainer",))
        is_empty = value is None and path not in filled
        is_no_mapping = value is not None or path in lists
        if len(path) == 1 and path[0] not in sections:
            yield place, f"there is no such setting{suggestion(path[0], sections)}"
        elif is_section and (value in NULLS or (path[0] == "trainer" and is_no_mapping)):
            yield place, f"expected settings, got {written}: write a mapping, or remove it"
        elif path[0] == "trainer" and len(path) == 2 and is_empty and path[1] not in trainer:
            yield place, f"there is no such setting{suggestion(path[1], trainer)}"
        elif path[-1] == "init_args" and is_no_mapping and value not in NULLS:
            yield ".".join(path[:-1]), f"init_args is {written}: write a mapping of arguments"
        elif path[-1] == "class_path" and (value in NULLS or not re.fullmatch(r"[^\W\d][\w.]*", value or "-")):
            yield ".".join(path[:-1]), f"class_path is {shortened(written, 60)}: write the name of a class"


def config_faults(config: Any, settings: Sequence[Setting], command: str) -> Iterator[tuple[str, str]]:
    """Yield each setting of a parsed configuration that cannot work, with its value and the remedy in one line.

    Args:
        config: The parsed configuration.
        settings: Everything that the files and options set.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    seed = config["seed_everything"]
    if not 0 <= seed < 2**32:
        yield "seed_everything", f"{seed} must lie between 0 and {2**32 - 1}"
    if not config["trainer.default_root_dir"]:
        yield "trainer.default_root_dir", f"expected the run directory, got {config['trainer.default_root_dir']!r}"
    for name, problem in trainer_faults(vars(config["trainer"]), fits=command == "fit"):
        yield f"trainer.{name}", problem
    filled = {setting.path[:-1] for setting in settings}
    for path, value, _ in settings:
        if path[-2:-1] == ("init_args",) and value is None and path not in filled:  # the parser drops an empty one
            owner = ".".join(key for key in path[:-2] if key not in WRAPPERS)
            if (names := argument_names(config, owner)) and path[-1] not in names:
                yield f"{owner}.{path[-1]}", f"there is no such setting{suggestion(path[-1], names)}"
    yield from non_finite_settings({name: config[name] for name in ("model", "data") if name in config})


def trainer_faults(settings: Mapping[str, Any], fits: bool) -> Iterator[tuple[str, str]]:
    """Yield each setting of the trainer that cannot work, with its value and the remedy in one line.

    Args:
        settings: The trainer's arguments by name; those that are missing are not checked.
        fits: The command trains, so that something is to be trained.

    Example:
        >>> list(trainer_faults({"max_epochs": 0, "log_every_n_steps": 50}, fits=True))
        [('max_epochs', '0 would train nothing: set 1 or more, or -1 for no limit')]
    """
    for name, instead in TRAINS_NOTHING.items() if fits else ():
        value = settings.get(name)
        if value == 0:
            yield name, f"{value} would train nothing: set {instead}"
    for name, (least, instead) in LEAST.items():
        value = settings.get(name)
        if value is not None and value < least:
            yield name, f"{value} is not a whole number of at least {least}: set {instead}"
    for name in LIMITS:
        value = settings.get(name)
        if value is not None and (value < 0 or (isinstance(value, float) and not value <= 1)):
            yield name, f"{value} is no number of batches: set a whole number, or a share from 0.0 to 1.0"
    interval = settings.get("val_check_interval")
    if isinstance(interval, int | float) and (interval <= 0 or (isinstance(interval, float) and not interval <= 1)):
        yield "val_check_interval", f"{interval} is no interval: set a number of batches, or a share such as 0.5"
    clip = settings.get("gradient_clip_val")
    if clip is not None and not (math.isfinite(clip) and clip >= 0):
        yield "gradient_clip_val", f"{clip} is no finite number of at least 0: set e.g. 1.0, or null for no clipping"
    if str(settings.get("max_time")) in ("00:00:00:00", "{}") and fits:
        yield "max_time", "00:00:00:00 would train nothing: set a longer time, or null"
    if problem := _devices_fault(settings.get("devices"), str(settings.get("accelerator"))):
        yield "devices", problem


def non_finite_settings(config: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield each setting of an optimizer or its schedule that is not finite; losses check their own.

    Example:
        >>> list(non_finite_settings({"model": {"optimizer": {"lr": float("inf")}}}))
        [('model.optimizer.lr', 'inf is not finite: set a number')]
    """
    if isinstance(config, float) and not math.isfinite(config):
        if {"optimizer", "lr_scheduler"} & {*place}:
            yield ".".join(place), f"{config} is not finite: set a number"
    elif isinstance(config, list):
        for index, item in enumerate(config):
            yield from non_finite_settings(item, (*place, str(index)))
    elif hasattr(config, "items"):
        for key, item in dict(vars(config) if not isinstance(config, dict) else config).items():
            yield from non_finite_settings(item, place if key in ("init_args", "dict_kwargs") else (*place, str(key)))


def _devices_fault(devices: Any, accelerator: str) -> str:
    """Check a number of processes against the machine: Lightning would start any number of them on CPUs."""
    text = str(devices)
    if not re.fullmatch(r"[+-]?\d+", text):
        return ""
    number = int(text)
    if number == 0 or number < -1:
        return f"{number} is no number of devices: set 1 or more, or auto"
    gpus = torch.cuda.device_count()
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    most = max(16, 4 * (os.cpu_count() or 1))
    if on_gpus and number > max(gpus, 1):
        return f"{number} are more than the {gpus} GPUs of this machine: set at most {gpus}"
    if not on_gpus and number > most:
        return f"{number} processes are more than this machine can hold: set at most {most}"
    return ""
