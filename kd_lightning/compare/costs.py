"""What networks cost in parameters, bytes, FLOPs and time, and what a run of them will."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import kd_lightning.data  # pyright: ignore[reportUnusedImport]  # what they hold is known by short names from here on
import kd_lightning.networks  # pyright: ignore[reportUnusedImport]  # noqa: F401
from kd_lightning.compare.config import Config
from kd_lightning.compare.survey import network_key
from kd_lightning.core.batch import split_batch

START_SECONDS = 2.0  # to build a run, to test it and to write it down
OVERHEAD = 1.25  # of Lightning, the optimizer and validation, over forward and backward


class Costs:
    """Measures each network once, however many variants it is in."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        """By `network_key`: what a table shows of a network."""
        self._training_step: dict[str, float] = {}

    def seconds(self, config: Config) -> float:
        """About how long a run will take; its networks are measured if they were not yet."""
        data = _instantiate(config["data"], LightningDataModule)
        data.setup("fit")
        loader = data.train_dataloader()
        arguments, key = config["model"]["init_args"], network_key(config)
        batch, modalities = next(iter(loader)), arguments.get("modalities")
        images: Tensor = batch[modalities["student"]] if modalities else split_batch(batch).student
        shown: Tensor = batch[modalities["teacher"]] if modalities else images
        if key not in self.facts:
            network = _instantiate(arguments["student"], nn.Module)
            self.facts[key] = _facts(network, images[:1])
            self._training_step[key] = _milliseconds(lambda: network(images).square().mean().backward())
        steps = _steps(config["trainer"], len(loader))
        total = steps * OVERHEAD * self._training_step[key]
        if "teacher" in arguments:
            teacher = _instantiate(arguments["teacher"]["init_args"]["network"], nn.Module).requires_grad_(False)
            cached = any("TeacherCache" in str(callback) for callback in config["trainer"].get("callbacks", []))
            rows = (split_batch(batch).labels["index"] for batch in data.train_rows()) if cached else ()
            batches = sum(map(len, rows)) / len(images) if cached else steps
            total += batches * _milliseconds(lambda: teacher(shown))
        return START_SECONDS + total / 1000


def _steps(trainer: Config, batches: int) -> int:
    limit = trainer.get("limit_train_batches")
    steps = trainer.get("max_epochs", 1) * (min(limit, batches) if isinstance(limit, int) else batches)
    most = trainer.get("max_steps", -1)
    return min(most, steps) if most > 0 else steps


def _facts(network: nn.Module, image: Tensor) -> dict[str, Any]:
    network.eval()
    with torch.no_grad():
        images = image.expand(64, *image.shape[1:]).contiguous()
        with FlopCounterMode(display=False) as counter:
            network(image)
        facts = {
            "name": type(network).__name__,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "bytes": len(save(dict(network.state_dict()))),
            "flops": counter.get_total_flops(),
            "latency_1_ms": _milliseconds(lambda: network(image), times=50),
            "latency_64_ms": _milliseconds(lambda: network(images), times=10),
        }
    network.train()
    return facts


def _milliseconds(call: Callable[[], object], times: int = 5) -> float:
    """The median of some calls, after two that warm up."""
    for _ in range(2):
        call()
    spent: list[float] = []
    for _ in range(times):
        start = perf_counter()
        call()
        spent.append(perf_counter() - start)
    return 1000 * median(spent)


def _instantiate(config: Config, base: type) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=base)
    return parser.instantiate_classes(parser.parse_object({"it": config}))["it"]
