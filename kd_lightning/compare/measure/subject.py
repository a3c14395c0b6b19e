"""What is measured of a run: a learner, or the network inside any other LightningModule."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningModule, Trainer

from kd_lightning import Classifier
from kd_lightning.core.errors import UsageError
from kd_lightning.core.evaluation import Evaluation
from kd_lightning.core.learner import Learner
from kd_lightning.core.lookup import suggestion


class Monitor(NamedTuple):
    """The metric by which runs are compared."""

    name: str
    mode: str


def learner_of(model: LightningModule, student: str | None) -> Learner | None:
    """Return a learner that evaluates a run: the model itself, or a stand-in around a network of another module.

    Args:
        model: The trained module.
        student: Dotted name of the network of another module that gives the logits, ``""`` for the module itself; None
            if it is only measured by what it logs.

    Raises:
        UsageError: The module has no such network.

    Example:
        >>> from torch import nn
        >>> class Theirs(LightningModule):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.net = nn.Linear(4, 2)
        >>> learner_of(Theirs(), "net").evaluation.kind is None
        True
    """
    if isinstance(model, Learner):
        if student is not None:
            raise UsageError(f"student={student!r} is for modules of your own, and the model is a Learner: remove it")
        return model
    if student is None:
        return None
    try:
        network = model.get_submodule(student)
    except AttributeError:
        names = [name for name, _ in model.named_children()]
        raise UsageError(
            f"student={student!r}: {type(model).__name__} has no such network{suggestion(student, names)}"
        ) from None
    stand_in = Classifier(network)
    stand_in.evaluation = Evaluation(None, {})  # the kind of label is that of the first batch
    return stand_in


def logged_metrics(trainer: Trainer, stage: str) -> dict[str, float]:
    """Return what a module has logged in a stage, by the metrics' names: ``val/acc`` and ``val_acc`` are ``acc``.

    Of our own learners only the inference network's numbers over all loaders count: ``val/acc``, not ``val/acc/even``.
    """
    found: dict[str, float] = {}
    for name, value in cast("dict[str, Any]", trainer.callback_metrics).items():
        for prefix in (f"{stage}/", f"{stage}_"):
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix):
                found[name.removeprefix(prefix)] = float(value)
    return found


def named_metric(monitor: str) -> str:
    """Return the metric that a monitored value is of.

    Example:
        >>> named_metric("val_f1"), named_metric("val/acc"), named_metric("f1")
        ('f1', 'acc', 'f1')
    """
    for stage in ("val", "test", "valid", "validation"):
        for separator in "/_":
            monitor = monitor.removeprefix(stage + separator)
    return monitor


def monitor_of(learner: Learner | None, asked: Monitor | None, found: list[str]) -> Monitor:
    """Return the metric to compare by: the one that was asked for, or the learner's.

    Args:
        learner: What was measured; None if no network was named.
        asked: The metric of the compare file.
        found: The names of all metrics of the test.

    Raises:
        UsageError: There is neither, or the test has no such metric.
    """
    if asked is not None:
        name = named_metric(asked.name)
        if name not in found:
            raise UsageError(f"monitor={asked.name!r}: the test has no metric {name!r}{suggestion(name, found)}")
        return Monitor(name, asked.mode)
    if learner is None:
        raise UsageError(
            "the model is a module of your own: name in the compare file its network, as `student: net`, or a metric "
            "that its test logs, as `monitor: test_f1` with `mode: max`"
        )
    return Monitor(learner.evaluation.monitor, learner.evaluation.mode)
