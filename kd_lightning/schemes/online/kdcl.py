"""KDCL: networks that learn together from an ensemble of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.batch import Batch, target_of
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.losses.common.checks import upcast
from kd_lightning.schemes.online.ensembles import LogitEnsemble
from kd_lightning.schemes.online.peers import PeerLearner


class KDCL(PeerLearner):
    """Every network learns from the labels and from an ensemble of all networks, combined at each step.

    L = sum_i CE(z_i, y) + lambda T^2 sum_i KL(softmax(z_t / T) || softmax(z_i / T)), with z_t = combine(z_1 .. z_m, y)
    held fixed, and z_i the logits of network i on its own augmentation of the image.

    Qiushan Guo, Xinjiang Wang, Yichao Wu, Zhipeng Yu, Ding Liang, Xiaolin Hu, Ping Luo: Online Knowledge Distillation
    via Collaborative Learning. CVPR 2020. T = 2 and lambda = 1 are usual. The ensemble is formed for each image
    separately, as in the paper's formulas for one image's logits; other implementations choose the network of least
    loss once a batch.

    All networks are trained by one optimizer; `deploy` chooses the inference network. A term with a teacher compares
    the logits of each network with those of the ensemble; every term is summed over the networks and logged as
    ``train/<term>``. The baseline is the student trained alone, a `Classifier`. The other arguments are those of
    `PeerLearner`.

    Args:
        combine: Computes the ensemble's logits (N, C) from those (m, N, C) of the networks and the class indices (N,):
            `NaiveEnsemble`, `LinearEnsemble`, `MinLogitEnsemble` or `GeneralEnsemble`.
        augmentation: Applied in training to each image, a float tensor (C, H, W), separately for each network; it must
            draw from torch's default generator. Without it all networks get the same images.

    Raises:
        UsageError: A `GeneralEnsemble` is for another number of networks; or, at a batch, there are no class indices.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> from kd_lightning.schemes import MinLogitEnsemble
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=2.0))}
        >>> learner = KDCL(StudentConvNet(), [TeacherConvNet()], terms, MinLogitEnsemble())
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        peers: Sequence[nn.Module],
        terms: dict[str, Term],
        combine: LogitEnsemble,
        augmentation: nn.Module | None = None,
        deploy: Literal["student", "best"] = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, peers, terms, deploy, optimizer, lr_scheduler, lr_interval, metrics)
        if combine.num_networks not in (None, len(self.networks())):
            raise UsageError(
                f"{type(combine).__name__}(num_networks={combine.num_networks}) cannot combine the student and "
                f"{len(peers)} peers: set num_networks={len(self.networks())}"
            )
        self.combine = combine
        self.augmentation = augmentation
        self.steps_are_alike = augmentation is None  # an augmentation may draw random numbers in Python or on the CPU

    def network_activations(self, batch: Batch) -> list[Activations]:
        """Return the activations of each network, the student first, on its own augmentation of the batch."""
        layers = dict.fromkeys([*self.terms.layers("student"), "logits"])
        return [tap(network, self._augmented(batch.student), layers) for network in self.networks().values()]

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term, summed over the networks."""
        batch = self.split_batch(batch)
        activations = self.network_activations(batch)
        logits = torch.stack([own["logits"].detach() for own in activations])
        ensemble = {"logits": cast("Tensor", self.combine(upcast(logits), _class_indices(logits, batch)))}
        losses = [self.term_losses(own, ensemble, batch.labels) for own in activations]
        return {name: torch.stack([of_one[name] for of_one in losses]).sum() for name in self.terms}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch, and pass its logits to an ensemble that learns from validation."""
        super().validation_step(batch, batch_idx, dataloader_idx)
        if self.combine.learns_from_validation and not self.trainer.sanity_checking:
            batch = self.split_batch(batch)
            logits = torch.stack(list(self.evaluated_logits(batch.student).values()))
            self.combine.observe(upcast(logits), _class_indices(logits, batch))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and update an ensemble that learns from validation."""
        super().on_validation_epoch_end()
        if self.combine.learns_from_validation and not self.trainer.sanity_checking:
            self.combine.update()

    def _augmented(self, images: Any) -> Any:
        return images if self.augmentation is None else torch.stack([self.augmentation(image) for image in images])


def _class_indices(logits: Tensor, batch: Batch) -> Tensor:
    target = target_of(batch.labels)
    if target is None or target.is_floating_point() or logits.dim() != 3 or target.shape != logits.shape[1:2]:
        found = "none" if target is None else f"{target.dtype} {tuple(target.shape)}"
        raise UsageError(
            f"an ensemble of {len(logits)} networks combines logits (N, C) by class indices (N,); "
            f"there are logits {tuple(logits.shape[1:])} and target {found}"
        )
    return target
