"""Trained to the last step and measured there: what a worker does for a run."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from statistics import fmean
from time import perf_counter, process_time
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from kd_lightning.cli.engine import build
from kd_lightning.cli.log_filters import quiet
from kd_lightning.compare.evaluation import (
    accuracy,
    agreement,
    calibration_error,
    divergence,
    negative_log_likelihood,
)
from kd_lightning.compare.survey import network_key
from kd_lightning.compare.training import CONFIG, LOGITS, Training
from kd_lightning.compare.worker import Tell
from kd_lightning.core.activations import logits_of
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.flatten import flatten_positions
from kd_lightning.core.hashing import weights_hash
from kd_lightning.core.learner import Learner
from kd_lightning.core.progress import optimizer_step

TRAIN_ROWS = 10_000
"""Train accuracy is measured on at most so many of a run's training images."""


class Recorder(Callback):
    """Tells how far training is, and keeps the validation curve."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.told = tell, 0.0
        self.curve: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Twice a second, not at each batch."""
        if perf_counter() - self.told > 0.5:
            self.told = perf_counter()
            self.tell(optimizer_step(trainer) / trainer.estimated_stepping_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A point of the curve."""
        if not trainer.sanity_checking:
            metrics = {
                name: trainer.callback_metrics[key].item()
                for name, key in (("accuracy", "val/acc"), ("nll", "val/nll"))
            }
            self.curve.append({"step": optimizer_step(trainer)} | metrics)


def fit_and_measure(task: Training, tell: Tell) -> dict[str, Any]:
    """Trains as ``kd-lightning fit`` would, then measures the weights of the last step."""
    gc.collect()  # what is left of the run before
    with quiet():
        run = build(["--config", str(task.folder / CONFIG)])
        trainer, model, data = cast("Any", run.trainer), cast("Learner", run.model), run.datamodule
        recorder = Recorder(tell)
        trainer.callbacks.append(recorder)
        start, began, cpu_began = weights_hash(model.student), perf_counter(), process_time()
        run.run()
        seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
    result: dict[str, Any] = {
        "network": network_key(task.config),
        "start": start,
        "steps": optimizer_step(trainer),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "curve": recorder.curve,
    }
    data.setup("test")
    model.to(trainer.strategy.root_device)  # which a fit has left, and the images have not
    measured, target = predict(model, data.test_dataloader(), task.network)
    logits = measured[0]
    np.savez(task.folder / LOGITS, logits=logits.numpy(), target=target.numpy())
    result |= _mean([_on_test_images(network, target) for network in measured])
    result |= _beside_teacher(task, logits, target) | _on_training_images(model, data, task.network)
    _log(trainer, task, result)
    return result


@torch.no_grad()
def predict(
    model: Learner, batches: Iterable[Any], network: str | None = None, limit: int | None = None
) -> tuple[list[Tensor], Tensor]:
    """Float32 logits (N, C) of each network that is measured and classes (N,) of the first rows, at most `limit`.

    Args:
        model: What was trained.
        batches: What to look at.
        network: One of the model's candidates, or ``mean`` for all of them; the deployed one if not given.
        limit: How many rows.

    Raises:
        UsageError: The model has no such candidate.
    """
    model.eval()
    logits: list[list[Tensor]] = []
    targets: list[Tensor] = []
    for batch in batches:
        if limit is not None and sum(map(len, targets)) >= limit:
            break
        inputs, _, labels = model.split_batch(batch)
        found = {} if network is None else model.evaluated_logits(inputs)
        if network not in (None, "mean", *found):
            raise UsageError(f"network={network!r} is neither mean nor any of {', '.join(found)}")
        chosen = (
            list(found.values()) if network == "mean" else [found[network] if network else logits_of(model(inputs))]
        )
        target = target_of(labels)
        if target is None:
            raise UsageError(f"a batch has no target to be measured against ({', '.join(labels) or 'no labels'})")
        rows = [flatten_positions(cast("Tensor", values).float(), None, target) for values in chosen]
        logits.append([each.student.cpu() for each in rows])
        targets.append(cast("Tensor", rows[0].target).cpu())
    return [torch.cat(batches)[:limit] for batches in zip(*logits, strict=True)], torch.cat(targets)[:limit]


def _on_test_images(logits: Tensor, target: Tensor) -> dict[str, Any]:
    return {
        "test_images": len(target),
        "accuracy": accuracy(logits, target),
        "errors": int((logits.argmax(dim=1) != target).sum()),
        "nll": negative_log_likelihood(logits, target),
        "calibration_error": calibration_error(logits, target),
    }


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: fmean(result[name] for result in results) for name in results[0]} if results[1:] else results[0]


def _beside_teacher(task: Training, logits: Tensor, target: Tensor) -> dict[str, Any]:
    if task.teacher_folder is None:
        return {"agreement": None, "divergence": None}
    with np.load(task.teacher_folder / LOGITS) as saved:
        teacher, teachers_target = torch.from_numpy(saved["logits"]), torch.from_numpy(saved["target"])
    if not torch.equal(target, teachers_target):
        raise UsageError(
            f"student and teacher ({task.teacher_folder}) were not tested on the same images: give both one data"
        )
    return {"agreement": agreement(logits, teacher), "divergence": divergence(logits, teacher)}


def _on_training_images(model: Learner, data: Any, network: str | None) -> dict[str, Any]:
    """Of data that can give its training images as they are, each once, as `MNISTDataModule.train_rows` does."""
    if not hasattr(data, "train_rows"):
        return {"train_images": None, "train_accuracy": None}
    images = sum(len(model.split_batch(batch).labels["index"]) for batch in data.train_rows())
    measured, target = predict(model, data.train_rows(), network, TRAIN_ROWS)
    return {"train_images": images, "train_accuracy": fmean(accuracy(logits, target) for logits in measured)}


def _log(trainer: Trainer, task: Training, result: dict[str, Any]) -> None:
    """The test figures to every logger, and to TensorBoard's HParams page under tags that are the same in all runs."""
    for logger in trainer.loggers:
        logger.log_metrics({"test/acc": result["accuracy"], "test/nll": result["nll"]}, step=result["steps"])
        if isinstance(logger, TensorBoardLogger):
            metrics = {"hp/test_acc": result["accuracy"], "hp/test_nll": result["nll"]}
            logger.log_hyperparams(task.labels, metrics)
        logger.finalize("success")
