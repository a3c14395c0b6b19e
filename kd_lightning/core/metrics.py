"""The measures of a network's outputs against labels of every kind: torchmetrics objects, and what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric, MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.flatten import flatten_positions
from kd_lightning.core.loss import LabelKind

Mode = Literal["min", "max"]


class Accuracy(MeanMetric):
    """Share of rows whose largest logit is that of the label, or of the most probable class of a soft label.

    Example:
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1]))
        >>> accuracy.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    takes_probabilities = True

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add rows: logits (M, C), and class indices (M,) or probabilities (M, C)."""
        super().update((preds.argmax(dim=1) == _indices(target)).float())


class NegativeLogLikelihood(MeanMetric):
    """Cross-entropy of logits and labels in nats, averaged over rows: ``torch.nn.functional.cross_entropy`` of all.

    Example:
        >>> nll = NegativeLogLikelihood()
        >>> nll.update(torch.zeros(2, 10), torch.tensor([0, 3]))
        >>> nll.compute()
        tensor(2.3026)
    """

    higher_is_better = False
    takes_probabilities = True

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add rows: logits (M, C), and class indices (M,) or probabilities (M, C)."""
        super().update(functional.cross_entropy(preds, target, reduction="none"))


class LabelAccuracy(MeanMetric):
    """Share of labels that are told right of classes that can hold together: a logit above 0 says that one holds.

    Example:
        >>> accuracy = LabelAccuracy()
        >>> accuracy.update(torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[1, 1, 1]]))
        >>> accuracy.compute()
        tensor(0.6667)
    """

    higher_is_better = True
    takes_logits = True

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add logits and labels of zeros and ones, both (N, L)."""
        super().update(((preds > 0) == (target > 0.5)).float())


class BinaryNegativeLogLikelihood(MeanMetric):
    """Binary cross-entropy of logits and labels in nats, averaged over all labels.

    Example:
        >>> nll = BinaryNegativeLogLikelihood()
        >>> nll.update(torch.zeros(2, 3), torch.ones(2, 3))
        >>> nll.compute()
        tensor(0.6931)
    """

    higher_is_better = False
    takes_logits = True

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add logits and labels of zeros and ones, both (N, L)."""
        super().update(functional.binary_cross_entropy_with_logits(preds, target.to(preds.dtype), reduction="none"))


class Metrics(MetricCollection):
    """A ``MetricCollection`` that says what its labels are and which metric chooses the best checkpoint.

    Of classes, the metrics get logits (M, C) and class indices (M,), tokens and pixels as rows and without ignored
    ones; of several labels, probabilities (N, L) and labels (N, L); of real values, both as they are.

    Args:
        metrics: The metrics by name; each is logged as ``val/<name>`` and ``test/<name>``.
        label_kind: ``classes``, ``multilabel`` or ``values``; the task loss's if not given.
        monitor: The name of the metric that chooses the best checkpoint; ``acc`` if there is one, else the first.
        mode: ``max`` or ``min``; the metric's own ``higher_is_better`` if not given.
        ignore_index: Class index that does not count; that of the task loss's term if not given.

    Raises:
        UsageError: There is no metric of the name `monitor`, or it does not say which direction is better.

    Example:
        >>> from torchmetrics.classification import MulticlassF1Score
        >>> metrics = Metrics({"f1": MulticlassF1Score(10), "acc": Accuracy()}, label_kind="classes", monitor="f1")
        >>> metrics.monitor, metrics.mode
        ('f1', 'max')
    """

    def __init__(
        self,
        metrics: dict[str, Metric],
        label_kind: LabelKind | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(cast("Any", metrics), compute_groups=False)
        self.label_kind = label_kind
        self.monitor = monitor or default_monitor(self)
        self.mode: Mode = mode or direction(self, self.monitor)
        self.ignore_index = ignore_index


def default_monitor(metrics: MetricCollection) -> str:
    """Return the name of the metric that chooses the best checkpoint: ``acc`` if there is one, else the first."""
    names = [str(name) for name in metrics]
    return "acc" if "acc" in names else names[0]


def direction(metrics: MetricCollection, name: str) -> Mode:
    """Return ``max`` or ``min``, by a metric's own ``higher_is_better``."""
    if name not in metrics:
        raise UsageError(f"monitor={name!r} is none of the metrics {', '.join(map(str, metrics))}: name one of them")
    better = metrics[name].higher_is_better
    if better is None:
        raise UsageError(f"monitor={name!r}: {type(metrics[name]).__name__} does not say what is better: set mode")
    return "max" if better else "min"


def classification_metrics(ignore_index: int | None = None) -> Metrics:
    """Accuracy and negative log-likelihood of exclusive classes: ``acc`` and ``nll``."""
    return Metrics({"acc": Accuracy(), "nll": NegativeLogLikelihood()}, "classes", ignore_index=ignore_index)


def multilabel_metrics() -> Metrics:
    """Accuracy and negative log-likelihood of labels that can hold together: ``acc`` and ``nll``, over all labels."""
    return Metrics({"acc": LabelAccuracy(), "nll": BinaryNegativeLogLikelihood()}, "multilabel")


def regression_metrics() -> Metrics:
    """Mean squared and mean absolute error of real values: ``mse`` and ``mae``."""
    return Metrics({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}, "values", monitor="mse")


DEFAULTS = {"classes": classification_metrics, "multilabel": multilabel_metrics, "values": regression_metrics}


def infer_kind(logits: Tensor, target: Tensor) -> LabelKind:
    """Tell what labels are where nothing declares it: class indices, or the real values of a network of one output.

    Raises:
        UsageError: They may be more than one thing.
    """
    integers = not (target.is_floating_point() or target.dtype == torch.bool)
    classes = logits.shape[1] if logits.dim() in (2, 4) else logits.shape[-1]
    if integers and target.dim() == logits.dim() - 1 and classes > 1:
        return "classes"
    one_output = logits.dim() <= 2 and logits.numel() == target.numel()
    if one_output and target.is_floating_point() and logits.numel() == len(logits) and _has_real_values(target):
        return "values"
    raise UsageError(
        f"labels are {target.dtype} {tuple(target.shape)} beside logits {tuple(logits.shape)}, and nothing declares "
        "what they are: give the scheme metrics=classification_metrics(), multilabel_metrics() or regression_metrics() "
        "of kd_lightning.core.metrics, or a task loss that declares its label_kind"
    )


def prepare(kind: LabelKind, logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor] | None:
    """Bring logits and labels to what metrics take; None where every label is ignored.

    Args:
        kind: What the labels are.
        logits: Of a network, (N, C), (N, L, C) or (N, C, H, W); of real values any shape.
        target: Class indices or probabilities; labels of zeros and ones; or real values.
        ignore_index: Class index that does not count.

    Raises:
        UsageError: Shapes do not fit each other.
    """
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if kind != "classes":
        if logits.dim() == target.dim() + 1 and logits.shape[-1] == 1:
            logits = logits.squeeze(-1)
        if target.dim() == logits.dim() + 1 and target.shape[-1] == 1:
            target = target.squeeze(-1)
        if logits.shape != target.shape:
            raise UsageError(
                f"outputs {tuple(logits.shape)} and labels {tuple(target.shape)} ({kind}) differ in shape: give each "
                "output one label"
            )
        return logits, target
    positions = logits.shape[:1] + logits.shape[2:] if logits.dim() in (2, 4) else logits.shape[:-1]
    per_position = target.shape == positions
    if logits.dim() not in (2, 3, 4) or not (per_position or target.shape == logits.shape):
        raise UsageError(
            f"logits {tuple(logits.shape)} and labels {tuple(target.shape)} of classes do not fit: labels are class "
            "indices, one a position, or probabilities or one-hot rows of the logits' shape"
        )
    if not per_position:
        target = target.to(logits.dtype)  # one-hot rows of whole numbers are probabilities
    elif not target.is_floating_point():
        target = target.long()
        if (target == ignore_index).all():
            return None
    rows = flatten_positions(logits, None, target, ignore_index)
    labels = cast("Tensor", rows.target)
    if not per_position or logits.dim() > 2:
        return rows.student, labels
    kept = labels != ignore_index
    return (rows.student, labels) if bool(kept.all()) else (rows.student[kept], labels[kept])


def update(metrics: MetricCollection, kind: LabelKind, logits: Tensor, target: Tensor) -> None:
    """Add prepared rows to every metric, as each takes them."""
    for metric in cast("Mapping[str, Metric]", metrics).values():
        if kind == "multilabel":
            metric.update(logits if getattr(metric, "takes_logits", False) else logits.sigmoid(), target)
        elif kind == "classes" and not getattr(metric, "takes_probabilities", False):
            metric.update(logits, _indices(target))
        else:
            metric.update(logits, target)


def _indices(target: Tensor) -> Tensor:
    return target.argmax(dim=1) if target.dim() > 1 else target


def _has_real_values(target: Tensor) -> bool:
    return bool(((target != 0) & (target != 1)).any())
