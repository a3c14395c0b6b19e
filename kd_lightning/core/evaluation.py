"""The evaluation of one network or several, on one loader or several, exact on uneven ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd_lightning.core.batch import target_of
from kd_lightning.core.distributed import is_true_anywhere
from kd_lightning.core.errors import NonFiniteError, UsageError
from kd_lightning.core.flatten import classes_last, next_positions
from kd_lightning.core.label_kinds import infer_kind, prepare, update
from kd_lightning.core.loss import LabelKind, loss_trait
from kd_lightning.core.metrics import DEFAULTS, Metrics, Mode, default_monitor, direction
from kd_lightning.core.term import Term

Stage = Literal["val", "test"]


class Evaluation:
    """Metrics of every evaluated network on every loader, and the names under which they are logged.

    ``val/acc`` is the inference network's over all loaders; ``val/acc/<network>`` another one's where several are
    evaluated; ``val/acc/<loader>`` that of one loader where there are several, ``val/acc/<network>/<loader>`` of both.

    Args:
        metrics: Any torchmetrics collection; by default those of the kind of label that the task loss declares.
        terms: The terms of the scheme, whose task loss declares the kind of label; its term has the label, the ignored
            index, the shift and the dimension of the classes.
    """

    def __init__(self, metrics: MetricCollection | Metric | None, terms: Mapping[str, Term]) -> None:
        if isinstance(metrics, Metric):
            metrics = MetricCollection([metrics])
        task = next((term for term in terms.values() if loss_trait(term.loss, "label_kind") is not None), None)
        declared = metrics if isinstance(metrics, Metrics) else None
        self.kind: LabelKind | None = cast("LabelKind | None", declared and declared.label_kind)
        if self.kind is None and task is not None:
            self.kind = loss_trait(task.loss, "label_kind")
        ignored = None if declared is None else declared.ignore_index
        self.ignore_index = ignored if ignored is not None else -100 if task is None else task.ignore_index
        self.label = task.target if task is not None and isinstance(task.target, str) else "target"
        self.shift = 0 if task is None else task.shift
        self.class_dim = None if task is None else task.class_dim
        self.metrics = DEFAULTS[self.kind]() if metrics is None and self.kind is not None else metrics
        self._running: dict[tuple[str, str, str | None], MetricCollection] = {}
        self._loaders: list[str] = []
        self._greatest: dict[tuple[str, str], Tensor] = {}

    @property
    def monitor(self) -> str:
        """The name of the metric that chooses the best checkpoint."""
        if isinstance(self.metrics, Metrics):
            return self.metrics.monitor
        return default_monitor(self._collection())

    @property
    def mode(self) -> Mode:
        """``max`` or ``min``: which value of the monitored metric is better."""
        return self.metrics.mode if isinstance(self.metrics, Metrics) else direction(self._collection(), self.monitor)

    def start(self, stage: Stage, networks: Sequence[str], loaders: Any, device: torch.device) -> None:
        """Reset the metrics of a stage for these networks and the trainer's loaders."""
        names = loader_names(loaders)
        self._loaders = names if len(names) > 1 else []
        self._running = {key: value for key, value in self._running.items() if key[0] != stage}
        self._greatest = {key: value for key, value in self._greatest.items() if key[0] != stage}
        self._expected = [(network, loader) for network in networks for loader in (None, *self._loaders)]
        self._device = device
        if self.metrics is not None:
            self._build(stage)

    def update(self, stage: Stage, network: str, logits: Tensor, labels: dict[str, Tensor], loader: int = 0) -> None:
        """Add a batch of one network's outputs and the batch's labels.

        Raises:
            UsageError: The batch has no label, or it does not fit the outputs.
        """
        target = labels.get(self.label, target_of(labels))
        if target is None:
            raise UsageError(
                f"{stage} batches have no target ({', '.join(labels) or 'no labels'}): evaluation needs one"
            )
        if logits.dim() == 3 and self.class_dim == 1:
            target = classes_last(target) if target.shape == logits.shape else target
            logits = classes_last(logits)
        if self.shift:
            logits, _, shifted, _ = next_positions(logits, None, target, None, self.shift)
            target = cast("Tensor", shifted)
        if self.kind is None:
            self.kind = infer_kind(logits, target)
        self._build(stage)
        rows = prepare(self.kind, logits, target, self.ignore_index)
        if rows is None:
            return
        for name in (None, self._loaders[loader]) if self._loaders else (None,):
            update(self._running[stage, network, name], self.kind, *rows)
        # a class that is masked out has a logit of -inf; the greatest is not finite only where no metric has a meaning
        outputs = rows[0].detach().abs() if self.kind == "values" else rows[0].detach()
        if outputs.numel():
            greatest, key = outputs.amax(), (stage, network)
            self._greatest[key] = torch.maximum(self._greatest[key], greatest) if key in self._greatest else greatest

    def compute(self, stage: Stage, inference_network: str) -> dict[str, Any]:
        """Compute all metrics of a stage, by the names under which they are logged.

        Raises:
            NonFiniteError: Outputs of a network are not finite on some rank; the accuracy of NaN looks like chance.
        """
        self._check_outputs(stage)
        networks = list(dict.fromkeys(network for at, network, _ in self._running if at == stage))
        values: dict[str, Any] = {}
        for (at, network, loader), collection in self._running.items():
            if at != stage:
                continue
            for metric, value in cast("Mapping[str, Metric]", collection).items():
                found = value.compute()
                named = [part for part in (network if len(networks) > 1 else None, loader) if part is not None]
                values["/".join([stage, metric, *named])] = found
                if network == inference_network and len(networks) > 1:
                    values["/".join([stage, metric, *([] if loader is None else [loader])])] = found
        return values

    def value(self, stage: Stage, network: str, metric: str) -> Tensor:
        """Compute one metric of one network over all loaders."""
        return cast("Mapping[str, Metric]", self._running[stage, network, None])[metric].compute()

    def _check_outputs(self, stage: Stage) -> None:
        for network in dict.fromkeys(network for network, _ in self._expected):
            greatest = self._greatest.get((stage, network))
            value = 0.0 if greatest is None else greatest.item()
            if is_true_anywhere(not math.isfinite(value), self._device):
                raise NonFiniteError(
                    f"{stage}: outputs of {network!r} are not finite ({value:g}), and no metric of them has a meaning: "
                    "look for non-finite inputs, a learning rate that is too high, or a damaged checkpoint"
                )

    def _collection(self) -> MetricCollection:
        return DEFAULTS[self.kind or "classes"]() if self.metrics is None else self.metrics

    def _build(self, stage: Stage) -> None:
        for network, loader in self._expected:
            if (stage, network, loader) not in self._running:
                self._running[stage, network, loader] = self._collection().clone().to(self._device)


def loader_names(loaders: Any) -> list[str]:
    """Name the evaluation loaders of a trainer: by the keys of a mapping, else by their numbers.

    Example:
        >>> loader_names({"digits": [], "letters": []}), loader_names([[], []]), loader_names([])
        (['digits', 'letters'], ['0', '1'], ['0'])
    """
    if isinstance(loaders, Mapping):
        return [str(name) for name in cast("Mapping[Any, Any]", loaders)]
    if isinstance(loaders, list | tuple):
        return [str(i) for i in range(max(len(cast("list[Any]", loaders)), 1))]
    return ["0"]
