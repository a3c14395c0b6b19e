"""On-the-fly native ensemble: the branches of one network learn from their gated ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import Learner, LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.networks.wrappers.branched_ensemble import BranchedEnsemble, GatingNetwork
from kd_lightning.networks.wrappers.branches import branch, check_branch
from kd_lightning.schemes.online.peers import detached


class ONE(Learner):
    """The student and further branches of it learn from the labels and from the gated ensemble of all branches.

    z_e = sum_i g_i z_i, g = softmax(ReLU(BN(W pool(F)))) of the shared features F

    L = sum_i CE(z_i, y) + CE(z_e, y) + w(t) T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T)), the last with z_e fixed

    Xu Lan, Xiatian Zhu, Shaogang Gong: Knowledge Distillation by On-the-Fly Native Ensemble. NeurIPS, 2018
    (arXiv:1806.04606). Theirs are 3 branches and T = 3; their code raises w(t) from 0.7 % to 1 in 80 of 300 epochs
    (`SigmoidRampUp`), to stabilise the training.

    All branches and the gate are trained. A term without a teacher is summed over the branches and the ensemble, one
    with a teacher over the branches, and logged as ``train/<term>``. The student, the first branch, is a plain network
    and the inference network (ONE). ``val/acc/ensemble`` is the accuracy of the whole ensemble (ONE-E): `ensemble` is
    that network, and ``export_student(learner.ensemble, path)`` writes it; for ``load_student(path, network)`` build it
    again as the `ensemble` of a learner with the same arguments. The baseline is the student trained alone, a
    `Classifier`.

    Args:
        student: The first branch; the others are copies of its unshared layers, initialised again.
        shared: Dotted names of the layers that the branches share, from the input on, in the order in which they run.
        gate_features: The number of channels of the last shared layer's output.
        terms: The losses on logits, by name.
        num_branches: The number of branches, the student included.
        optimizer: Builds the optimizer from the parameters of all branches, the gate and the terms.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer.
        lr_interval: ``step`` or ``epoch``: when the scheduler steps.
        metrics: Any torchmetrics collection to evaluate by; by default that of the kind of label.

    Raises:
        UsageError: There are fewer than two branches, or as for `branch`; at the first batch: the shared layers are
            not the ones that run below the branching point, or `gate_features` does not fit.

    Example:
        >>> from kd_lightning import Term
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet
        >>> terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=3.0))}
        >>> learner = ONE(StudentConvNet(), ["conv.0", "conv.1"], gate_features=32, terms=terms)
        >>> sorted(learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))))
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        shared: Sequence[str],
        gate_features: int,
        terms: dict[str, Term],
        num_branches: int = 3,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        if num_branches < 2:
            raise UsageError(
                f"num_branches={num_branches} must be at least 2: the student and one further branch, e.g. 3"
            )
        self.shared = list(shared)
        self.branches = nn.ModuleList(branch(student, self.shared) for _ in range(num_branches - 1))
        self.gate = GatingNetwork(gate_features, num_branches)
        self.evaluated_networks = ["student", *(f"branches.{i}" for i in range(num_branches - 1)), "ensemble"]
        self._is_checked = False

    @property
    def ensemble(self) -> BranchedEnsemble:
        """All branches and the gate as one network, which shares its parameters with this module."""
        return BranchedEnsemble(self.student, self.shared[-1], self.branches, self.gate)

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of each branch and of the ensemble; the first call checks the branching point."""
        if not self._is_checked:
            check_branch(self.student, self.shared, inputs)
            self._is_checked = True
        branches, ensemble = self.ensemble.all_logits(inputs)
        return dict(zip(self.evaluated_networks, [*branches, ensemble], strict=True))

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute each term, summed over the branches, and over the ensemble too where it has no teacher."""
        batch = self.split_batch(batch)
        *branches, ensemble = ({"logits": logits} for logits in self.evaluated_logits(batch.student).values())
        teacher = detached(ensemble)
        losses: dict[str, Tensor] = {}
        for name, term in self.terms.all().items():
            students = [*branches, ensemble] if term.teacher is None else branches
            losses[name] = torch.stack([term(own, teacher, batch.labels) for own in students]).sum()
        return losses
