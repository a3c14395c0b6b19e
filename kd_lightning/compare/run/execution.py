"""The training of one run to its last step, and the measurements of its last weights."""

from __future__ import annotations

import gc
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from kd_lightning.cli.engine import build
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.compare.measure.classification import accuracy, agreement, divergence
from kd_lightning.compare.measure.figures import UNMEASURED, Measured, measure_learner
from kd_lightning.compare.measure.measures import measure_key
from kd_lightning.compare.measure.predictions import predict, prepared_rows
from kd_lightning.compare.measure.subject import Monitor, learner_of, logged_metrics, monitor_of
from kd_lightning.compare.messages import ReportProgress
from kd_lightning.compare.plan.artifacts import CONFIG, OUTPUTS, Result, RunSpec
from kd_lightning.compare.plan.config import network_key
from kd_lightning.compare.plan.variants import LAST_CHECKPOINT
from kd_lightning.compare.run.kept_images import keep_test_images
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import atomic_write
from kd_lightning.core.hashing import weights_hash
from kd_lightning.core.label_kinds import class_indices
from kd_lightning.core.learner import Learner
from kd_lightning.core.progress import optimizer_step
from kd_lightning.core.protocols import ProvidesTrainingRows
from kd_lightning.weights import load_student

TRAIN_ROWS = 10_000
"""Train accuracy is measured on at most this number of a run's training rows."""


class Recorder(Callback):
    """Reports the progress of training, and keeps the validation curve."""

    def __init__(self, report_progress: ReportProgress) -> None:
        self.report_progress, self.reported = report_progress, 0.0
        self.curve: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report progress twice a second."""
        if perf_counter() - self.reported > 0.5:
            self.reported = perf_counter()
            self.report_progress(optimizer_step(trainer) / trainer.estimated_stepping_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the inference network's metrics over all loaders to the curve."""
        if trainer.sanity_checking:
            return
        metrics = {measure_key(name): value for name, value in logged_metrics(trainer, "val").items()}
        self.curve.append({"step": optimizer_step(trainer)} | metrics)


def execute(spec: RunSpec, report_progress: ReportProgress) -> Result:
    """Train as ``kd-lightning fit`` does, then measure the weights of the last step.

    Returns:
        Plain values: ``network`` (its key), ``start`` (hash of the student's first weights), ``steps``, ``seconds``,
        ``cpu_seconds``, ``curve``, ``label_kind``, ``monitor``, ``mode`` and ``metrics`` of the learner, the number of
        test and training images, and of class labels ``accuracy``, ``errors``, ``nll``, ``calibration_error``,
        ``chance`` (the share of the most frequent class), ``train_accuracy``, and beside a teacher ``agreement`` and
        ``divergence``.
    """
    gc.collect()  # frees the run before
    with expected_messages_hidden():
        run = build(["--config", str(spec.run_dir / CONFIG)])
        trainer, model, data = cast("Any", run.trainer), cast("LightningModule", run.model), run.datamodule
        learner = learner_of(model, spec.student)
        recorder = Recorder(report_progress)
        trainer.callbacks.append(recorder)
        start = weights_hash(model if learner is None else learner.student)
        began, cpu_began = perf_counter(), process_time()
        if spec.weights is None:
            run.run()
        else:
            _take_weights(learner, spec.weights, spec.run_dir / LAST_CHECKPOINT)
        seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
        if not (last := spec.run_dir / LAST_CHECKPOINT).is_file():  # the run has a ModelCheckpoint of its own
            trainer.save_checkpoint(last, weights_only=True)
        steps = optimizer_step(trainer) if spec.weights is None else 0
        logged = _test_metrics(trainer, model, data)
    measured = UNMEASURED if learner is None else _measure(spec, learner, data or model, trainer)
    with atomic_write(spec.run_dir / OUTPUTS) as stream:
        np.savez(stream, logits=measured.outputs.numpy(), target=measured.target.numpy())
    if learner is not None and measured.label_kind == "classes":
        keep_test_images(spec, learner, (data or model).test_dataloader())
    metrics = logged | measured.metrics
    monitor = monitor_of(learner, spec.monitor and Monitor(*spec.monitor), list(metrics))
    result: Result = {
        "network": network_key(spec.config),
        "start": start,
        "steps": steps,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "curve": recorder.curve,
        "label_kind": measured.label_kind,
        "monitor": measure_key(monitor.name),
        "mode": monitor.mode,
        "metrics": {measure_key(name): value for name, value in metrics.items()},
        "test_images": len(measured.target),
        **measured.figures,
        **_beside_teacher(spec, measured),
        **_on_training_rows(learner if spec.weights is None else None, data, spec.evaluate),
    }
    _log(trainer, spec, measured.metrics, steps)
    return result


def _test_metrics(trainer: Trainer, model: LightningModule, data: LightningDataModule | None) -> dict[str, float]:
    """Return what a module that is no learner logs in its own test; a learner is measured by `measure_learner`."""
    if isinstance(model, Learner) or not is_overridden("test_step", model):
        return {}
    trainer.test(model, datamodule=data, verbose=False)
    return logged_metrics(trainer, "test")


def _measure(spec: RunSpec, learner: Learner, data: Any, trainer: Trainer) -> Measured:
    if isinstance(data, LightningDataModule):
        data.setup("test")
    learner.to(trainer.strategy.root_device)  # a fit moves it away, while the resident images stay there
    return measure_learner(learner, data.test_dataloader(), spec.evaluate)


def _take_weights(learner: Learner | None, weights: str, checkpoint: Path) -> None:
    """Load the student of a file, and store it as that of a run's last step."""
    if learner is None:
        raise UsageError(f"weights {weights}: name the network of your module that they belong to, as `student: net`")
    load_student(weights, learner.student)
    with atomic_write(checkpoint) as stream:
        torch.save(
            {"state_dict": {f"student.{name}": value for name, value in learner.student.state_dict().items()}}, stream
        )


def _beside_teacher(spec: RunSpec, measured: Measured) -> Result:
    if spec.teacher_dir is None or measured.label_kind != "classes":
        return {"agreement": None, "divergence": None}
    with np.load(spec.teacher_dir / OUTPUTS) as saved:
        logits, target = torch.from_numpy(saved["logits"]), torch.from_numpy(saved["target"])
    if not torch.equal(measured.target, target):
        raise UsageError(
            f"student and teacher ({spec.teacher_dir}) were not tested on the same images: give both the same data"
        )
    return {"agreement": agreement(measured.outputs, logits), "divergence": divergence(measured.outputs, logits)}


def _on_training_rows(model: Learner | None, data: object, evaluate: str | None) -> Result:
    """Measure the training rows of data that can give each of them once."""
    if model is None or not isinstance(data, ProvidesTrainingRows):
        return {"train_images": None, "train_accuracy": None}
    count, kind = sum(_num_samples(model, batch) for batch in data.train_rows()), model.evaluation.kind
    if kind != "classes":
        return {"train_images": count, "train_accuracy": None}
    batches = predict(model, data.train_rows(), evaluate)
    outputs, target = prepared_rows(batches, kind, model.evaluation.ignore_index, TRAIN_ROWS)
    return {
        "train_images": count,
        "train_accuracy": fmean(accuracy(logits, class_indices(target)) for logits in outputs),
    }


def _num_samples(model: Learner, batch: Any) -> int:
    labels = model.split_batch(batch).labels
    return len(labels["index"] if "index" in labels else cast("Any", target_of(labels)))


def _log(trainer: Trainer, spec: RunSpec, metrics: dict[str, float], step: int) -> None:
    """Log the test metrics, which TensorBoard shows on its HParams page as well."""
    values = {f"test/{name}": value for name, value in metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(spec.labels, values, step=step)
        else:
            logger.log_metrics(values, step=step)
        logger.finalize("success")
