"""What a teacher's owner may hand out in place of the data: statistics of its activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.batch import target_of
from kd_lightning.learner import Learner
from kd_lightning.taps import tap


class ActivationStatistics(Callback):
    """Writes, when a fit ends, the mean and the spread of each class's activations: a teacher's metadata.

    Raphael Gontijo Lopes, Stefano Fenu, Thad Starner: Data-Free Knowledge Distillation for Deep Neural Networks. 2017
    (arXiv:1710.07535). It looks once more at every training image, as it is before augmentation, with the network that
    is deployed. `kd_lightning.schemes.inversion_targets.RecordedActivations` draws from the file.

    Args:
        layers: Whose activations are recorded, ``logits`` among them if it is to be.
        covariance: Those of them of which the whole covariance is kept, and not each number's own deviation: a square
            of the layer's size for each class.
        file: Where to; ``statistics.safetensors`` in the run's folder if not given.

    Raises:
        ValueError: There are no layers, or `covariance` names others; when the fit starts: the data has no training
            images to give, or the scheme is none of this package's.

    Example:
        >>> ActivationStatistics(["conv.5", "logits"], covariance=["logits"]).layers
        ['conv.5', 'logits']
    """

    def __init__(self, layers: list[str], covariance: list[str] | None = None, file: str | Path | None = None) -> None:
        if not layers or not set(covariance or ()) <= set(layers):
            raise ValueError(f"layers={layers} must name some, and covariance={covariance} only some of those")
        self.layers = layers
        self.covariance = covariance or []
        self.file = file

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what it could not record, before anything is trained."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "train_rows") or not isinstance(pl_module, Learner):
            raise ValueError(
                f"ActivationStatistics looks at a Learner's training images, and {type(data).__name__} of "
                f"{type(pl_module).__name__} gives none: use a data module of kd_lightning.data"
            )

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks, and writes."""
        if not trainer.is_global_zero or not isinstance(pl_module, Learner):
            return
        network = pl_module.get_submodule(pl_module.deployed)
        training = network.training
        network.eval()
        data: Any = getattr(trainer, "datamodule", None)
        found = statistics(network, (self._seen(pl_module, batch) for batch in data.train_rows()), self)
        network.train(training)
        path = Path(trainer.default_root_dir, "statistics.safetensors") if self.file is None else Path(self.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, path)

    def _seen(self, learner: Learner, batch: Any) -> tuple[Any, Tensor]:
        batch = learner.trainer.strategy.batch_to_device(batch, learner.device)
        split = learner.split_batch(batch)
        target = target_of(split.labels)
        if target is None or target.is_floating_point():
            raise ValueError("ActivationStatistics are of classes, and a batch has no class indices: drop it")
        return split.student, target


def statistics(network: nn.Module, batches: Any, wanted: ActivationStatistics) -> dict[str, Tensor]:
    """``<layer>.mean`` (K, D), and ``<layer>.deviation`` (K, D) or ``<layer>.factor`` (K, D, D), of D numbers a layer.

    A factor is the square root of the covariance, which divides by the number of samples as the deviation does.
    """
    counts: dict[int, int] = {}
    sums: dict[tuple[str, int], Tensor] = {}
    squares: dict[tuple[str, int], Tensor] = {}
    for inputs, target in batches:
        seen = tap(network, inputs, wanted.layers)
        for label in target.unique().tolist():
            chosen = target == label
            counts[label] = counts.get(label, 0) + int(chosen.sum())
            for layer in wanted.layers:
                rows = seen[layer][chosen].flatten(1).double()
                square = rows.mT @ rows if layer in wanted.covariance else rows.square().sum(dim=0)
                key = (layer, label)
                sums[key] = sums[key] + rows.sum(dim=0) if key in sums else rows.sum(dim=0)
                squares[key] = squares[key] + square if key in squares else square
    found: dict[str, Tensor] = {}
    for layer in wanted.layers:
        means: list[Tensor] = []
        spreads: list[Tensor] = []
        for label in sorted(counts):
            mean = sums[layer, label] / counts[label]
            square = squares[layer, label] / counts[label]
            means.append(mean)
            whole = square.dim() == 2
            spreads.append(_root(square - mean.outer(mean)) if whole else (square - mean**2).clamp(min=0).sqrt())
        found[f"{layer}.mean"] = torch.stack(means).float().cpu()
        kind = "factor" if layer in wanted.covariance else "deviation"
        found[f"{layer}.{kind}"] = torch.stack(spreads).float().cpu()
    return found


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
