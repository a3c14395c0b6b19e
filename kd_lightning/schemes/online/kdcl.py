"""KDCL: networks that learn together from an ensemble of themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.batch import Batch, target_of
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.losses.common.checks import upcast
from kd_lightning.schemes.online.peers import PeerLearner


class KDCL(PeerLearner):
    """Every network learns from the labels and from a teacher that is combined from all of them at each step.

    L = sum_i CE(z_i, y) + lambda T^2 sum_i KL(softmax(z_t / T) || softmax(z_i / T)), with z_t = combine(z_1 .. z_m, y)
    held fixed, and z_i what network i says about its own distortion of the image.

    Qiushan Guo, Xinjiang Wang, Yichao Wu, Zhipeng Yu, Ding Liang, Xiaolin Hu, Ping Luo: Online Knowledge Distillation
    via Collaborative Learning. CVPR 2020. T = 2 and lambda = 1 are usual. The ensembles are made for each image by
    itself, as the paper's formulas are for one image's logits; others choose the network of least loss once a batch.

    A term with a teacher compares each network with the ensemble, at its logits; every term is summed over the
    networks. The other arguments are those of `PeerLearner`.

    Args:
        combine: Makes the ensemble's logits (N, C) of the networks' (m, N, C) and the class indices (N,):
            `NaiveEnsemble`, `LinearEnsemble`, `MinLogitEnsemble` or `GeneralEnsemble`.
        augmentation: Applied anew for each network and image, a float tensor (C, H, W), while training; it must draw
            from torch's default generator. Without it all networks see the same image.

    Raises:
        UsageError: A `GeneralEnsemble` is for another number of networks; or, at a batch, there are no class indices.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
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
        combine: nn.Module,
        augmentation: nn.Module | None = None,
        deploy: Literal["student", "best"] = "student",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, peers, terms, deploy, optimizer, lr_scheduler, lr_interval, metrics)
        if isinstance(combine, GeneralEnsemble) and len(combine.weights) != len(self.networks()):
            raise UsageError(
                f"GeneralEnsemble(networks={len(combine.weights)}) is to combine the student and {len(peers)} peers: "
                f"set networks={len(self.networks())}"
            )
        self.combine = combine
        self.augmentation = augmentation
        self.steps_are_alike = augmentation is None  # it may draw its random numbers in Python or on the CPU

    def network_activations(self, batch: Batch) -> list[Activations]:
        """What each network gives for its own view of the batch."""
        layers = dict.fromkeys([*self.terms.layers("student"), "logits"])
        return [tap(network, self._view(batch.student), layers) for network in self.networks().values()]

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Each term, summed over the networks."""
        batch = self.split_batch(batch)
        seen = self.network_activations(batch)
        logits = torch.stack([activations["logits"].detach() for activations in seen])
        ensemble = {"logits": cast("Tensor", self.combine(upcast(logits), _class_indices(logits, batch)))}
        losses = [self.term_losses(own, ensemble, batch.labels) for own in seen]
        return {name: torch.stack([of_one[name] for of_one in losses]).sum() for name in self.terms}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count a batch, and the errors on it where the ensemble's weights depend on them."""
        super().validation_step(batch, batch_idx, dataloader_idx)
        if isinstance(self.combine, GeneralEnsemble) and not self.trainer.sanity_checking:
            batch = self.split_batch(batch)
            logits = torch.stack(list(self.evaluated_logits(batch.student).values()))
            self.combine.observe(upcast(logits), _class_indices(logits, batch))

    def on_validation_epoch_end(self) -> None:
        """Logs what validation found, and makes the weights anew where the ensemble has some."""
        super().on_validation_epoch_end()
        if isinstance(self.combine, GeneralEnsemble) and not self.trainer.sanity_checking:
            self.combine.update()

    def _view(self, images: Any) -> Any:
        return images if self.augmentation is None else torch.stack([self.augmentation(image) for image in images])


class NaiveEnsemble(nn.Module):
    """What the network of least cross-entropy says: z_t = z_k, k = argmin_i CE(z_i, y), for each image.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0]], [[2.0, 0.0]]])
        >>> NaiveEnsemble()(logits, torch.tensor([0]))
        tensor([[2., 0.]])
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) of (m, N, C) and class indices (N,)."""
        losses = margins(logits, target).logsumexp(dim=2)
        return logits[losses.argmin(dim=0), torch.arange(len(target), device=logits.device)]


class LinearEnsemble(nn.Module):
    """The convex combination of least cross-entropy: z_t = sum_i a_i z_i, a = argmin CE(sum_i a_i z_i, y), per image.

    The problem, with a_i >= 0 and sum_i a_i = 1, is convex and so small that accelerated mirror descent (Tseng's, in
    the entropy's geometry) solves it for all images at once. CE = log(1 + exp g) grows with g = logsumexp of the wrong
    classes' margins; g is what is minimised, for its gradient does not vanish where the networks are right. After k
    steps the loss is within R^2 log(m) / (k + 1)^2 of the least, R being the most that two networks differ in a margin.

    Args:
        steps: k.

    Raises:
        UsageError: There is no step.

    Example:
        >>> logits = torch.tensor([[[0.0, 4.0, -4.0]], [[0.0, -4.0, 4.0]]])
        >>> LinearEnsemble()(logits, torch.tensor([0]))
        tensor([[0., 0., 0.]])
    """

    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        if steps < 1:
            raise UsageError(f"steps={steps} must be at least 1")
        self.steps = steps

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) of (m, N, C) and class indices (N,)."""
        return torch.einsum("in,inc->nc", self.coefficients(logits, target), logits)

    def coefficients(self, logits: Tensor, target: Tensor) -> Tensor:
        """The a_i of each image, (m, N)."""
        margin = margins(logits, target)  # i = network, n = image, c = class
        right = functional.one_hot(target, logits.shape[2]).bool()
        spread = (margin.amax(dim=0) - margin.amin(dim=0)).amax(dim=1)
        rate = 4 / spread.square().clamp_min(1e-12)
        duals = torch.zeros_like(margin[:, :, 0])
        mean = mirrored = duals.softmax(dim=0)
        for k in range(self.steps):
            theta = 2 / (k + 2)
            between = (1 - theta) * mean + theta * mirrored
            scores = torch.einsum("in,inc->nc", between, margin)
            wrong = scores.masked_fill(right, -math.inf).softmax(dim=1)
            duals = duals - rate / theta * torch.einsum("nc,inc->in", wrong, margin)
            mirrored = duals.softmax(dim=0)
            mean = (1 - theta) * mean + theta * mirrored
        return mean


class MinLogitEnsemble(nn.Module):
    """The least that any network gives each class, against what it gives the right one: z_t,c = min_i (z_i,c - z_i,y).

    Its cross-entropy is at most that of the best network.

    Example:
        >>> logits = torch.tensor([[[1.0, 2.0, -3.0]], [[0.0, -4.0, 4.0]]])
        >>> MinLogitEnsemble()(logits, torch.tensor([0]))
        tensor([[ 0., -4., -4.]])
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) of (m, N, C) and class indices (N,)."""
        return margins(logits, target).amin(dim=0)


class GeneralEnsemble(nn.Module):
    """The combination whose squared error on held-out data is least: z_t = sum_i w_i z_i, with sum_i w_i = 1.

    C_ij = sum_n (p_i(x_n) - t_n) . (p_j(x_n) - t_n) over the validation images, p the softmax at T = 1 and t one-hot;
    w_k = sum_j (C^-1)_kj / sum_ij (C^-1)_ij. A weight may be negative.

    The paper measures C on held-out data after each epoch. Here every validation does; until the first, the weights
    are equal. Errors are those of probabilities, while what is combined are the logits, as in the linear form: with a
    negative weight, probabilities would not stay such. A millionth of C's mean diagonal is added to its diagonal, so
    that networks with the same errors get the same weight. While all err alike, weights of both signs may be large (4.3
    and -3.9, measured after 100 steps): validate once the networks have come to differ, with long epochs.

    Args:
        networks: How many are combined, the student included.

    Raises:
        UsageError: There are fewer than two networks.

    Example:
        >>> ensemble = GeneralEnsemble(networks=2)
        >>> ensemble.observe(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]]), torch.tensor([0]))
        >>> ensemble.update()
        >>> ensemble.weights
        tensor([ 1.1565, -0.1565])
    """

    weights: Tensor
    correlation: Tensor

    def __init__(self, networks: int) -> None:
        super().__init__()
        if networks < 2:
            raise UsageError(f"networks={networks} must be at least 2")
        self.register_buffer("weights", torch.full((networks,), 1 / networks))
        self.register_buffer("correlation", torch.zeros(networks, networks), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) of (m, N, C); the class indices (N,) are not looked at."""
        return torch.einsum("i,inc->nc", self.weights, logits)

    def observe(self, logits: Tensor, target: Tensor) -> None:
        """Counts the errors of held-out logits (m, N, C)."""
        errors = logits.softmax(dim=2) - functional.one_hot(target, logits.shape[2])
        self.correlation += torch.einsum("inc,jnc->ij", errors, errors)

    def update(self) -> None:
        """Makes the weights from the errors that all ranks counted since the last time."""
        correlation = all_gather_with_grad(self.correlation.unsqueeze(0)).sum(dim=0).cpu().double()
        correlation.diagonal().add_(1e-6 * correlation.diagonal().mean() + 1e-30)
        shares = torch.linalg.solve(correlation, torch.ones_like(correlation[0]))
        self.weights.copy_(shares / shares.sum())
        self.correlation.zero_()


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """What each network (m, N, C) gives each class more than the right one: z_i,c - z_i,y."""
    return logits - logits.gather(2, target.expand(len(logits), -1).unsqueeze(2))


def _class_indices(logits: Tensor, batch: Batch) -> Tensor:
    target = target_of(batch.labels)
    if target is None or target.is_floating_point() or logits.dim() != 3 or target.shape != logits.shape[1:2]:
        found = "none" if target is None else f"{target.dtype} {tuple(target.shape)}"
        raise UsageError(
            f"an ensemble of {len(logits)} networks combines logits (N, C) by class indices (N,); "
            f"there are logits {tuple(logits.shape[1:])} and target {found}"
        )
    return target
