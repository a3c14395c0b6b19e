"""Statistics of a network's activations, saved after training as a substitute for the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save
from torch import Tensor, nn

from kd_lightning.core.activations import tap
from kd_lightning.core.batch import target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.files import atomic_write
from kd_lightning.core.learner import Learner
from kd_lightning.core.protocols import ProvidesTrainingRows, data_module_of


class ActivationStatistics(Callback):
    """Save the mean and the spread of each class's activations at the end of a fit: the metadata of a teacher.

    Raphael Gontijo Lopes, Stefano Fenu, Thad Starner: Data-Free Knowledge Distillation for Deep Neural Networks. 2017
    (arXiv:1710.07535). After training, the inference network runs once on every training image without augmentation.
    `kd_lightning.schemes.data_free.inversion_targets.RecordedActivations` samples targets from the file.

    The spectral form keeps fewer numbers of a layer: f' = U^T (f - m) / s, with m and s the mean and the deviation of
    the activations over all classes and U the eigenvectors of the largest eigenvalues of the graph corr(f_i, f_j) of
    the layer's units: in each eigenvector, correlated units have similar values. This is an interpretation of the
    paper's sketch. The authors' published code builds another graph, of the layers' mean activations, and does not use
    it, so that the exact method behind their figures is not known.

    Args:
        layers: The layers whose activations are recorded; ``logits`` may be one of them.
        covariance: Those of the layers whose full covariance matrices are saved, one for each class, instead of the
            deviation of each unit.
        spectral: The number of eigenvectors by layer, for some of the layers; the full covariance of their coefficients
            is saved as ``<layer>.spectral``, in addition to the layer's own statistics. At most 4,096 units a layer,
            because the graph has their number squared.
        file: The file to write; ``statistics.safetensors`` in the run directory by default.

    Raises:
        UsageError: There are no layers, `covariance` or `spectral` names others, or a number is below 1; at the start
            of the fit: the data module does not provide its training rows, or the module is no `Learner`; at its end: a
            layer of `spectral` is too large, or a batch has no class indices.

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
                f"layers={layers} must name at least one layer, and covariance={covariance} and spectral={spectral} "
                "only some of these"
            )
        if any(count < 1 for count in (spectral or {}).values()):
            raise UsageError(f"spectral={spectral} must have at least 1 eigenvector for each layer")
        self.layers = layers
        self.covariance = covariance or []
        self.spectral = spectral or {}
        self.file = file

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the data module and the scheme before training."""
        data = data_module_of(trainer)
        if not isinstance(data, ProvidesTrainingRows) or not isinstance(pl_module, Learner):
            raise UsageError(
                f"ActivationStatistics needs a Learner and the training rows of a data module, and there are "
                f"{type(pl_module).__name__} and {type(data).__name__}: use a data module of kd_lightning.data"
            )

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the statistics over the training set and save them."""
        if not trainer.is_global_zero or not isinstance(pl_module, Learner):
            return
        network = pl_module.get_submodule(pl_module.inference_network_name)
        training = network.training
        network.eval()
        data = cast("ProvidesTrainingRows", data_module_of(trainer))  # checked by `on_fit_start`
        found = statistics(network, (self._inputs_and_classes(pl_module, batch) for batch in data.train_rows()), self)
        network.train(training)
        path = Path(trainer.default_root_dir, "statistics.safetensors") if self.file is None else Path(self.file)
        with atomic_write(path) as stream:
            stream.write(save(found))

    def _inputs_and_classes(self, learner: Learner, batch: Any) -> tuple[Any, Tensor]:
        batch = learner.trainer.strategy.batch_to_device(batch, learner.device)
        split = learner.split_batch(batch)
        target = target_of(split.labels)
        if target is None or target.is_floating_point():
            raise UsageError("ActivationStatistics needs class indices, and a batch has none: remove the callback")
        return split.student, target


def statistics(network: nn.Module, batches: Any, wanted: ActivationStatistics) -> dict[str, Tensor]:
    """Compute the statistics of K classes from batches, for layers of D units and E eigenvectors.

    For each layer ``<layer>.mean`` (K, D), and ``<layer>.deviation`` (K, D) or, with its covariance,
    ``<layer>.factor`` (K, D, D). In the spectral form ``<layer>.spectral.mean`` (K, E) and
    ``<layer>.spectral.factor`` (K, E, E) of the coefficients f', and ``<layer>.spectral.basis`` (D, E) and
    ``<layer>.spectral.offset`` (D,), from which f = offset + basis f'. A factor is the square root of the covariance,
    which divides by the number of samples, as the deviation does.

    Args:
        network: The network, in eval mode.
        batches: Pairs of inputs and class indices (N,).
        wanted: The callback, for its layers.
    """
    full = {*wanted.covariance, *wanted.spectral}
    counts: dict[int, int] = {}
    waiting: dict[int, list[dict[str, Tensor]]] = {}
    sums: dict[tuple[str, int], Tensor] = {}
    squares: dict[tuple[str, int], Tensor] = {}

    def add(label: int) -> None:
        batches_of_label = waiting.pop(label)
        for layer in wanted.layers:
            rows = torch.cat([some[layer] for some in batches_of_label]).double()
            if layer in wanted.spectral and rows.shape[1] > 4096:
                raise UsageError(f"spectral: {layer!r} has {rows.shape[1]} units, and its graph may have 4096 at most")
            key, square = (layer, label), rows.mT @ rows if layer in full else rows.square().sum(dim=0)
            sums[key] = rows.sum(dim=0).add_(sums.get(key, 0))
            squares[key] = square.add_(squares.get(key, 0))

    for inputs, target in batches:
        activations = tap(network, inputs, wanted.layers)
        for label in target.unique().tolist():
            chosen = target == label
            counts[label] = counts.get(label, 0) + int(chosen.sum())
            some = {layer: activations[layer][chosen].flatten(1) for layer in wanted.layers}
            waiting.setdefault(label, []).append(some)
            # Rows are collected first, because each product of a large layer reads and writes a (D, D) matrix.
            if sum(len(rows[wanted.layers[0]]) for rows in waiting[label]) >= 256:
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
            into, basis = spectral_basis(overall, wanted.spectral[layer])
            inside = (means - mean) @ into
            spreads = [_root(into.mT @ (s - m.outer(m)) @ into) for s, m in zip(second, means, strict=True)]
            record = {"basis": basis, "offset": mean, "mean": inside, "factor": torch.stack(spreads)}
            found |= {f"{layer}.spectral.{kind}": value for kind, value in record.items()}
    return {name: value.float().contiguous().cpu() for name, value in found.items()}


def spectral_basis(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute U / s and s U, (D, E) each, with U the eigenvectors of the largest eigenvalues of the correlations.

    Constant units are excluded from the graph, and 0 in every eigenvector.

    Args:
        covariance: The covariance (D, D) of a layer's units.
        count: The number E of eigenvectors, or all if there are fewer.
    """
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    varying = (deviation > 1e-6 * deviation.amax()).nonzero().squeeze(1)
    scale = deviation[varying]
    _, vectors = torch.linalg.eigh(covariance[varying][:, varying] / scale.outer(scale))
    kept = vectors[:, -count:]
    into, basis = (covariance.new_zeros(len(covariance), kept.shape[1]) for _ in range(2))
    into[varying], basis[varying] = kept / scale.unsqueeze(1), kept * scale.unsqueeze(1)
    return into, basis


def _root(covariance: Tensor) -> Tensor:
    """Compute the symmetric square root of a covariance (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
