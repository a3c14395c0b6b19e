"""Metrics of evaluation: torchmetrics classes and the default collection of each kind of label."""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric, MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.label_kinds import class_indices
from kd_lightning.core.loss import LabelKind

Mode = Literal["min", "max"]


class Accuracy(MeanMetric):
    """Share of rows whose largest logit is that of the label, or of the most probable class of a soft label.

    Example:
        >>> import torch
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
        super().update((preds.argmax(dim=1) == class_indices(target)).float())


class NegativeLogLikelihood(MeanMetric):
    """Cross-entropy of logits and labels in nats, averaged over rows: ``torch.nn.functional.cross_entropy`` of all.

    Example:
        >>> import torch
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
    """Share of correct decisions about labels that can hold together: a logit above 0 predicts that a label holds.

    Example:
        >>> import torch
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
        >>> import torch
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
    """A ``MetricCollection`` that declares the kind of its labels and which metric chooses the best checkpoint.

    For classes the metrics receive logits (M, C) and class indices (M,), with tokens and pixels as rows and without
    ignored ones; for several labels, probabilities (N, L) and labels (N, L); for real values, outputs and labels.

    Args:
        metrics: The metrics by name; each is logged as ``val/<name>`` and ``test/<name>``.
        label_kind: ``classes``, ``multilabel`` or ``values``; the task loss's if not given.
        monitor: The name of the metric that chooses the best checkpoint; ``acc`` if there is one, else the first.
        mode: ``max`` or ``min``; the metric's own ``higher_is_better`` if not given.
        ignore_index: Class index that does not count; that of the task loss's term if not given.

    Raises:
        UsageError: There is no metric of the name `monitor`, or it does not declare which direction is better.

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
        raise UsageError(
            f"monitor={name!r}: {type(metrics[name]).__name__} does not declare higher_is_better: set mode"
        )
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
