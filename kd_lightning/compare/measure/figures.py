"""The test metrics of a learner on all its loaders, and the further figures of class labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from statistics import fmean
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from kd_lightning.compare.measure.classification import accuracy, calibration_error, negative_log_likelihood
from kd_lightning.compare.measure.predictions import Predictions, predict, prepared_rows
from kd_lightning.core.errors import UsageError
from kd_lightning.core.evaluation import Evaluation
from kd_lightning.core.label_kinds import class_indices
from kd_lightning.core.learner import Learner
from kd_lightning.core.loss import LabelKind
from kd_lightning.core.metrics import DEFAULTS, Accuracy, NegativeLogLikelihood


class Measured(NamedTuple):
    """The measurements of a learner on its test data."""

    label_kind: LabelKind | Literal["none"]
    metrics: dict[str, float]
    """The learner's metrics by name, over all loaders and, as ``<metric>/<loader>``, of each of several."""
    figures: dict[str, Any]
    """Of class labels: ``accuracy``, ``errors``, ``nll``, ``calibration_error`` and ``chance``; else empty."""
    outputs: Tensor
    """Of the first evaluated network, float32; rows of logits (N, C) for classes."""
    target: Tensor


UNMEASURED = Measured("none", {}, {}, torch.zeros(0), torch.zeros(0))
"""Of a module whose network is not named: it is measured by what it logs alone."""


def measure_learner(model: Learner, loaders: Any, evaluate: str | None = None) -> Measured:
    """Measure a learner on its test loaders; several networks give the mean of each number.

    Args:
        model: The trained learner.
        loaders: One loader, a list of loaders, or a mapping of loaders by name.
        evaluate: The name of one of the model's evaluated networks, or ``mean`` for all of them; None for the
            inference network.

    Raises:
        UsageError: There is no such network, there is no label, or the monitored metric is not a single number.
    """
    evaluation = model.evaluation
    batches = [list(predict(model, loader, evaluate)) for loader in _each(loaders)]
    networks = list(next(chain.from_iterable(batches), ({}, None))[0])
    if not networks:
        raise UsageError("the test loaders have no batches: a comparison needs test data")
    metrics = [_metrics(evaluation, name, loaders, batches) for name in networks]
    kind = cast("LabelKind", evaluation.kind)
    outputs, target = prepared_rows(chain.from_iterable(batches), kind, evaluation.ignore_index)
    figures: list[dict[str, Any]] = [class_figures(rows, target) if kind == "classes" else {} for rows in outputs]
    for values, each in zip(metrics, figures, strict=True):
        values |= {name: each[key] for name, key in _exact(model).items() if key in each}  # the same, in float64
    if evaluation.monitor not in metrics[0]:
        raise UsageError(f"monitor={evaluation.monitor!r} is not a single number: monitor a metric that is one")
    return Measured(kind, _mean(metrics), _mean(figures), outputs[0], target)


def class_figures(logits: Tensor, target: Tensor) -> dict[str, Any]:
    """Compute the figures of class labels from rows of logits (N, C) and labels (N,) or (N, C), in float64."""
    classes = class_indices(target)
    return {
        "accuracy": accuracy(logits, classes),
        "errors": int((logits.argmax(dim=1) != classes).sum()),
        "nll": negative_log_likelihood(logits, target),
        "calibration_error": calibration_error(logits, classes),
        "chance": classes.bincount().max().item() / len(classes),
    }


def _metrics(evaluation: Evaluation, network: str, loaders: Any, batches: list[list[Predictions]]) -> dict[str, float]:
    evaluation.start("test", [network], loaders, torch.device("cpu"))
    for number, predictions in enumerate(batches):
        for outputs, target in predictions:
            evaluation.update("test", network, outputs[network], {evaluation.label: target}, number)
    values = evaluation.compute("test", network)
    return {
        name.removeprefix("test/"): float(value)
        for name, value in values.items()
        if not isinstance(value, Mapping) and torch.as_tensor(value).numel() == 1
    }


def _exact(model: Learner) -> dict[str, str]:
    """The metrics of a learner that are class figures, by the metric's name: the figure's name."""
    metrics = model.evaluation.metrics
    collection = DEFAULTS["classes"]() if metrics is None else metrics
    known = {"accuracy": Accuracy, "nll": NegativeLogLikelihood}
    return {
        str(name): key
        for name, metric in cast("Mapping[str, Metric]", collection).items()
        for key, kind in known.items()
        if isinstance(metric, kind)
    }


def _each(loaders: Any) -> list[Iterable[object]]:
    if isinstance(loaders, Mapping):
        return list(cast("Mapping[str, Iterable[object]]", loaders).values())
    return cast("list[Iterable[object]]", loaders) if isinstance(loaders, list | tuple) else [loaders]


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: fmean(result[name] for result in results) for name in results[0]} if results[1:] else results[0]
