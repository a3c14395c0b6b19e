"""FewShotDistiller: a pruned teacher is repaired with a few samples, by least squares in each layer."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import tap
from kd_lightning.core.arguments import check_is_network
from kd_lightning.core.distributed import all_reduce_sum
from kd_lightning.core.freezing import check_sharing
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.schemes.frozen_teacher import FrozenTeacher
from kd_lightning.weights.pruning import kept_channels


class FewShotDistiller(FrozenTeacher):
    """Fit a 1x1 convolution after each layer of a pruned teacher to the unpruned outputs, and merge it into the layer.

    Q_l = argmin_Q sum_np ||Q f_l(x_n)_p - g_l(x_n)_p||^2, and W_l becomes Q_l W_l, b_l Q_l b_l

    f_l are the student's outputs of layer l, with all earlier layers repaired, g_l the teacher's outputs in the
    channels that pruning kept, n the samples of a batch, p the positions of a map. Labels are not used.

    Tianhong Li, Jianguo Li, Zhuang Liu, Changshui Zhang: Few Sample Knowledge Distillation for Efficient Network
    Compression. CVPR 2020 (arXiv:1812.01839). One step on all samples in one batch by SGD with a learning rate of 1,
    the default, is the paper's method: it reaches the minimum of each layer's loss, 1/2 ||W_l - Q_l W_l||^2. A smaller
    rate makes a part of that step, for samples in several batches.

    The loss of a layer is logged by its name, with _ for each dot. Layers outside `layers` do not change, nor do the
    statistics of BatchNorm. The other arguments are those of `Learner`.

    Args:
        student: The pruned teacher, from `kd_lightning.weights.pruning`; or a network of the teacher's widths that
            differs in its weights, such as a quantized one.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        layers: The dotted names of the convolutions and linear layers to repair, in the order in which they run.

    Raises:
        UsageError: As `kd_lightning.weights.pruning`, or teacher and student share parameters.

    Example:
        >>> from kd_lightning.networks import ConvNet, prune
        >>> layers, teacher = ["conv.0", "conv.2", "conv.4"], ConvNet(8)
        >>> learner = FewShotDistiller(prune(ConvNet(4), teacher, [*layers, "classifier"]), teacher, layers)
        >>> list(learner.compute_losses(torch.rand(6, 3, 28, 28)))
        ['conv_0', 'conv_2', 'conv_4']
    """

    teacher_sees_data = False

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: list[str],
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        for name, network in (("student", student), ("teacher", teacher)):
            check_is_network(network, name)
        check_sharing(student, teacher)
        kept = kept_channels(student, teacher, layers)
        student.requires_grad_(False)
        terms: dict[str, Term] = {}
        for name in layers:
            own = [f"{name}.{key}" for key, _ in student.get_submodule(name).requires_grad_(True).named_parameters()]
            terms[name.replace(".", "_")] = Term(_ParameterDistance(), student=own, teacher=None, target=own)
        whole_way = partial(torch.optim.SGD, lr=1.0)
        super().__init__(student, terms, optimizer or whole_way, lr_scheduler, lr_interval, metrics)
        self.teacher = teacher
        self.fitted = layers
        self.kept = kept

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute, for each layer, half the squared distance from its weights to the fitted ones."""
        return self.term_losses(dict(self.student.named_parameters()), None, self.fit(self.split_batch(batch).student))

    @torch.no_grad()
    def fit(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the repaired weights of the student, by name."""
        whole = copy.deepcopy(self.student).eval()
        with torch.autocast(self.device.type, enabled=False):
            teacher = tap(self.teacher, inputs, self.fitted)
            for name in self.fitted:
                theirs = teacher[name][:, self.kept[name].to(teacher[name].device)]
                mixing = self._mixing(tap(whole, inputs, [name])[name], theirs)
                for value in whole.get_submodule(name).parameters():
                    value.copy_((mixing @ value.double().flatten(1 if value.dim() > 1 else 0)).reshape(value.shape))
        return dict(whole.named_parameters())

    @staticmethod
    def _mixing(ours: Tensor, theirs: Tensor) -> Tensor:
        """Compute Q (C, C) from all processes' outputs (N, C, ...); the smallest where several fit equally well.

        It is NaN where an output is not finite, for the check of the loss to find; the decomposition would raise.
        """
        f, g = (side.movedim(1, -1).flatten(0, -2).double() for side in (ours, theirs))
        squares, products = all_reduce_sum(f.mT @ f), all_reduce_sum(f.mT @ g)
        if not squares.isfinite().all():
            return torch.full_like(squares, torch.nan)
        return (torch.linalg.pinv(squares, rtol=1e-10, hermitian=True) @ products).mT


class _ParameterDistance(nn.Module):
    """Half the squared distance of a layer's parameters from the target's."""

    needs_target = True

    def forward(self, student: list[Tensor], teacher: None, target: list[Tensor]) -> Tensor:
        return torch.stack([(s - t).square().sum() for s, t in zip(student, target, strict=True)]).sum() / 2
