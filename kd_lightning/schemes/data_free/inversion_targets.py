"""Targets: the labels that images are optimised for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.torch_internals import sample_dirichlet


class Targets(nn.Module, ABC):
    """Draws the label ``target`` of each synthetic image."""

    @abstractmethod
    def forward(self, count: int, teacher: nn.Module) -> Tensor:
        """Draw `count` targets (count, ...) on the teacher's device, from torch's default generator."""

    def student_targets(self, targets: Tensor) -> Tensor:
        """Return the part of the targets that the student may use as its label: all of it, unless overridden."""
        return targets


class RandomClasses(Targets):
    """Draw classes with equal probability.

    Args:
        classes: The number of classes.

    Example:
        >>> RandomClasses(classes=10)(4, nn.Linear(2, 10)).shape
        torch.Size([4])
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, count: int, teacher: nn.Module) -> Tensor:
        """Draw class indices (count,)."""
        device = next(teacher.parameters()).device
        return torch.randint(self.classes, (count,), device=device)


class DataImpressions(Targets):
    """Draw distributions over the classes from a model of the teacher's softmax outputs.

    y ~ Dirichlet(beta c_k), with c_kj the cosine of the rows k and j of the last layer's weights, scaled to [0, 1] in
    each row: classes with similar weights are probable together. k is drawn uniformly.

    Gaurav Kumar Nayak et al.: Zero-Shot Knowledge Distillation in Deep Networks. ICML 2019 (arXiv:1905.08114).

    Args:
        layer: The teacher's last linear layer.
        betas: Concentrations of the distributions; each image draws one of them.

    Raises:
        UsageError: A beta is not above 0; at a call: there is no such layer with weights (C, D).

    Example:
        >>> DataImpressions("0")(4, nn.Sequential(nn.Linear(5, 10))).shape
        torch.Size([4, 10])
    """

    def __init__(self, layer: str = "classifier", betas: tuple[float, ...] = (1.0, 0.1)) -> None:
        super().__init__()
        if not betas or not all(beta > 0 for beta in betas):
            raise UsageError(f"betas={betas} must be numbers above 0, e.g. [1.0, 0.1]")
        self.layer = layer
        self.betas = betas

    def forward(self, count: int, teacher: nn.Module) -> Tensor:
        """Draw probabilities (count, C)."""
        weight = dict(teacher.named_parameters()).get(f"{self.layer}.weight")
        if weight is None or weight.dim() != 2:
            raise UsageError(f"layer={self.layer!r} is no linear layer of {type(teacher).__name__}: name the last one")
        similar = self.similarity(weight.detach())
        concentration = similar[torch.randint(len(similar), (count,), device=similar.device)]
        betas = similar.new_tensor(self.betas)[torch.randint(len(self.betas), (count,), device=similar.device)]
        # no class is impossible; drawn in double precision, where a share too small for a float is not 0 / 0
        return sample_dirichlet((betas.unsqueeze(1) * concentration.clamp(min=1e-3)).double()).float()

    @staticmethod
    def similarity(weight: Tensor) -> Tensor:
        """Compute the concentrations (C, C) from the weights (C, D)."""
        rows = functional.normalize(weight.float(), dim=1)
        cosines = rows @ rows.T
        low, high = cosines.amin(dim=1, keepdim=True), cosines.amax(dim=1, keepdim=True)
        return (cosines - low) / (high - low).clamp(min=1e-12)


class RecordedActivations(Targets):
    """Draw activations from the Gaussians of a class that `kd_lightning.callbacks.ActivationStatistics` recorded.

    Classes have equal probability. The values of a layer with a covariance are drawn jointly, those of other layers
    independently, and layers independently of each other. Raphael Gontijo Lopes, Stefano Fenu, Thad Starner: Data-Free
    Knowledge Distillation for Deep Neural Networks. 2017 (arXiv:1710.07535).

    Args:
        file: The statistics, or a checkpoint with ``statistics.safetensors`` in the same directory.
        layers: Names of records in the file, in the order in which the term addresses the layers; ``<layer>.spectral``
            is a record of fewer values, from which the layer's values are computed.

    Raises:
        FileNotFoundError: There is no such file.
        UsageError: A layer is not in it.
    """

    def __init__(self, file: str | Path, layers: list[str]) -> None:
        super().__init__()
        if str(file).endswith(".ckpt"):
            file = Path(file).with_name("statistics.safetensors")
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"file={str(file)!r} is not there: train the teacher with ActivationStatistics first"
            )
        found = load_file(file)
        known = [name.removesuffix(".mean") for name in found if name.endswith(".mean")]
        if not layers or not set(layers) <= set(known):
            raise UsageError(f"file={str(file)!r} has {', '.join(known)}; layers={layers} must be some of them")
        self.layers = layers
        self.statistics = {name: value for name, value in found.items() if name.rpartition(".")[0] in layers}

    def forward(self, count: int, teacher: nn.Module) -> Tensor:
        """Draw values (count, D) of all layers, concatenated."""
        device = next(teacher.parameters()).device
        found = {name: value.to(device) for name, value in self.statistics.items()}
        classes = torch.randint(len(found[f"{self.layers[0]}.mean"]), (count,), device=device)
        drawn: list[Tensor] = []
        for layer in self.layers:
            mean = found[f"{layer}.mean"][classes]
            noise = torch.randn_like(mean)
            if f"{layer}.factor" in found:
                numbers = mean + (found[f"{layer}.factor"][classes] @ noise.unsqueeze(2)).squeeze(2)
            else:
                numbers = mean + found[f"{layer}.deviation"][classes] * noise
            if f"{layer}.basis" in found:
                numbers = found[f"{layer}.offset"] + numbers @ found[f"{layer}.basis"].mT
            drawn.append(numbers)
        return torch.cat(drawn, dim=1)

    def student_targets(self, targets: Tensor) -> Tensor:
        """Return an empty tensor (count, 0): the values are of the teacher's layers, and no label for the student."""
        return targets[:, :0]
