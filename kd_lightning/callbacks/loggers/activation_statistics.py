"""What a teacher's owner may hand out in place of the data: statistics of its activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.core.activations import tap
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner
from kd_lightning.core.protocols import TrainingRows


class ActivationStatistics(Callback):
    """Writes, when a fit ends, the mean and the spread of each class's activations: a teacher's metadata.

    Raphael Gontijo Lopes, Stefano Fenu, Thad Starner: Data-Free Knowledge Distillation for Deep Neural Networks. 2017
    (arXiv:1710.07535). It looks once more at every training image, as it is before augmentation, with the network that
    is deployed. `kd_lightning.schemes.data_free.inversion_targets.RecordedActivations` draws from the file.

    The spectral form keeps fewer numbers of a layer: f' = U^T (f - m) / s, with m and s the mean and the deviation over
    all classes and U the eigenvectors of the largest eigenvalues of a graph of the layer's numbers, corr(f_i, f_j): the
    waves in which numbers that go together are alike. It is a reading of what the paper sketches. The authors'
    published code makes another graph, of the layers' mean activations, and then does not use it, so that what exactly
    their figures are of is not known.

    Args:
        layers: Whose activations are recorded, ``logits`` among them if it is to be.
        covariance: Those of them of which the whole covariance is kept, and not each number's own deviation: a square
            of the layer's size for each class.
        spectral: For each of some layers, how many eigenvectors are kept, with the whole covariance of what they give.
            The record is there as ``<layer>.spectral`` beside the layer's own. At most 4,096 numbers a layer, as the
            graph is a square of them.
        file: Where to; ``statistics.safetensors`` in the run's folder if not given.

    Raises:
        UsageError: There are no layers, `covariance` or `spectral` names others, or a number is below 1; when the fit
            starts: the data has no training images to give, or the scheme is none of this package's; when it ends: a
            layer of `spectral` is too large.

    Example:
        >>> ActivationStatistics(["conv.5", "logits"], covariance=["logits"]).layers
        ['conv.5', 'logits']
    """

    def __init__(
        self,
        layers: list[str],
        covariance: list[str] | None = None,
        spectral: dict[str, int] | None = None,
        file: str | Path | None = None,
    ) -> None:
        if not layers or not {*(covariance or ()), *(spectral or ())} <= set(layers):
            raise UsageError(
                f"layers={layers} must name some, and covariance={covariance} and spectral={spectral} none but those"
            )
        if any(count < 1 for count in (spectral or {}).values()):
            raise UsageError(f"spectral={spectral} must keep at least 1 eigenvector of each layer")
        self.layers = layers
        self.covariance = covariance or []
        self.spectral = spectral or {}
        self.file = file

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what it could not record, before anything is trained."""
        data: object = getattr(trainer, "datamodule", None)
        if not isinstance(data, TrainingRows) or not isinstance(pl_module, Learner):
            raise UsageError(
                f"ActivationStatistics looks at a Learner's training images, and {type(data).__name__} of "
                f"{type(pl_module).__name__} gives none: use a data module of kd_lightning.data"
            )

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks, and writes."""
        if not trainer.is_global_zero or not isinstance(pl_module, Learner):
            return
        network = pl_module.get_submodule(pl_module.inference_network_name)
        training = network.training
        network.eval()
        data = cast("TrainingRows", getattr(trainer, "datamodule", None))  # as `on_fit_start` found
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
            raise UsageError("ActivationStatistics are of classes, and a batch has no class indices: drop it")
        return split.student, target


def statistics(network: nn.Module, batches: Any, wanted: ActivationStatistics) -> dict[str, Tensor]:
    """``<layer>.mean`` (K, D), and ``<layer>.deviation`` (K, D) or ``<layer>.factor`` (K, D, D), of D numbers a layer.

    Of a layer's E waves, ``<layer>.spectral.mean`` (K, E) and ``<layer>.spectral.factor`` (K, E, E), with what makes
    the layer's numbers of them, f = offset + basis f': ``<layer>.spectral.basis`` (D, E), ``<layer>.spectral.offset``
    (D,). A factor is the square root of the covariance, which divides by the number of samples as the deviation does.
    """
    whole = {*wanted.covariance, *wanted.spectral}
    counts: dict[int, int] = {}
    waiting: dict[int, list[dict[str, Tensor]]] = {}
    sums: dict[tuple[str, int], Tensor] = {}
    squares: dict[tuple[str, int], Tensor] = {}

    def add(label: int) -> None:
        seen = waiting.pop(label)
        for layer in wanted.layers:
            rows = torch.cat([some[layer] for some in seen]).double()
            if layer in wanted.spectral and rows.shape[1] > 4096:
                raise UsageError(f"spectral: {layer!r} gives {rows.shape[1]} numbers, and a graph is of 4096 at most")
            key, square = (layer, label), rows.mT @ rows if layer in whole else rows.square().sum(dim=0)
            sums[key] = rows.sum(dim=0).add_(sums.get(key, 0))
            squares[key] = square.add_(squares.get(key, 0))

    for inputs, target in batches:
        seen = tap(network, inputs, wanted.layers)
        for label in target.unique().tolist():
            chosen = target == label
            counts[label] = counts.get(label, 0) + int(chosen.sum())
            some = {layer: seen[layer][chosen].flatten(1) for layer in wanted.layers}
            waiting.setdefault(label, []).append(some)
            if (
                sum(len(rows[wanted.layers[0]]) for rows in waiting[label]) >= 256
            ):  # a square of a large layer is a long way to go for a few rows
                add(label)
    for label in [*waiting]:
        add(label)
    found: dict[str, Tensor] = {}
    labels = sorted(counts)
    for layer in wanted.layers:
        means = torch.stack([sums[layer, label] / counts[label] for label in labels])
        second = torch.stack([squares[layer, label] / counts[label] for label in labels])
        found[f"{layer}.mean"] = means
        if layer in wanted.covariance:
            found[f"{layer}.factor"] = torch.stack([_root(s - m.outer(m)) for s, m in zip(second, means, strict=True)])
        else:
            powers = second.diagonal(dim1=1, dim2=2) if second.dim() == 3 else second
            found[f"{layer}.deviation"] = (powers - means**2).clamp(min=0).sqrt()
        if layer in wanted.spectral:
            shares = means.new_tensor([counts[label] for label in labels]) / sum(counts.values())
            mean = shares @ means
            overall = (shares[:, None, None] * second).sum(dim=0) - mean.outer(mean)
            into, basis = waves(overall, wanted.spectral[layer])
            inside = (means - mean) @ into
            spreads = [_root(into.mT @ (s - m.outer(m)) @ into) for s, m in zip(second, means, strict=True)]
            record = {"basis": basis, "offset": mean, "mean": inside, "factor": torch.stack(spreads)}
            found |= {f"{layer}.spectral.{kind}": value for kind, value in record.items()}
    return {name: value.float().contiguous().cpu() for name, value in found.items()}


def waves(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """U / s and s U, (D, E) each: the eigenvectors U of the largest eigenvalues of the correlations.

    Numbers that never move are no part of the graph, and 0 in every eigenvector. E is `count`, or all that there are.
    """
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    moving = (deviation > 1e-6 * deviation.amax()).nonzero().squeeze(1)
    scale = deviation[moving]
    _, vectors = torch.linalg.eigh(covariance[moving][:, moving] / scale.outer(scale))
    kept = vectors[:, -count:]
    into, basis = (covariance.new_zeros(len(covariance), kept.shape[1]) for _ in range(2))
    into[moving], basis[moving] = kept / scale.unsqueeze(1), kept * scale.unsqueeze(1)
    return into, basis


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
