"""A student grafted into its teacher, block by block."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.losses import LogitMSELoss
from kd_lightning.networks.wrappers.grafted import GraftedStudent, check_blocks, run_blocks
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class GraftingDistiller(FrozenTeacher):
    """Blocks of the student take the place of the teacher's, one at a time, then ever more of them together.

    Of B blocks, the first `block_steps` batches teach the first by itself, between nothing and the teacher's second,
    and so on to the B-th; then the first two are taught together, `net_steps` batches, and so on to all B, where it
    stays. What is compared are the logits of such a mixed network and the teacher's; only the blocks that are in it,
    and the 1x1 convolutions at their ends, learn then. No label is needed: a few samples are enough, for a block has
    few parameters and everything around it is trained.

    Chengchao Shen, Xinchao Wang, Youtan Yin, Jie Song, Sihui Luo, Mingli Song: Progressive Network Grafting for
    Few-Shot Knowledge Distillation. AAAI 2021 (arXiv:2012.04915). The authors have an optimizer, and a rate, for each
    stage; here there is one, whose state a parameter keeps from stage to stage. The other arguments are those of
    `Learner`.

    Args:
        student: The student in blocks.
        teacher: The network that teaches; it is frozen and left out of every checkpoint.
        teacher_blocks: The teacher's layers in as many blocks, as for `kd_lightning.networks.wrappers.grafted.Blocks`.
        terms: What compares the logits; their mean squared error if not given.
        block_steps: Batches for each block by itself.
        net_steps: Batches for each number of blocks together.

    Raises:
        UsageError: A number is below 1, there are not as many blocks of the teacher as of the student, a term looks at
            more than the logits, or teacher and student share parameters; at the first batch: the teacher's blocks,
            one after the other, do not give what the teacher does.

    Example:
        >>> from kd_lightning.networks import ConvNet
        >>> blocks = [["conv"], ["pool", "flatten", "classifier"]]
        >>> learner = GraftingDistiller(GraftedStudent(ConvNet(4), blocks, 4, 8), ConvNet(8), blocks)
        >>> list(learner.compute_losses(torch.rand(2, 3, 28, 28)))
        ['logits']
    """

    teacher_sees_data = False
    steps_are_alike = False  # the blocks that learn follow from the batch's number

    def __init__(
        self,
        student: GraftedStudent,
        teacher: nn.Module,
        teacher_blocks: list[list[str]],
        terms: dict[str, Term] | None = None,
        block_steps: int = 100,
        net_steps: int = 100,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        terms = {"logits": Term(LogitMSELoss())} if terms is None else terms
        if any(term.student != "logits" or term.teacher not in ("logits", None) for term in terms.values()):
            raise UsageError("terms: the logits alone are seen of a network that is part teacher and part student")
        if block_steps < 1 or net_steps < 1:
            raise UsageError(f"block_steps={block_steps} and net_steps={net_steps} must be at least 1")
        super().__init__(student, terms, optimizer, lr_scheduler, lr_interval, metrics)
        self.grafted = len(student.parts.blocks)
        if len(teacher_blocks) != self.grafted:
            raise UsageError(f"teacher_blocks are {len(teacher_blocks)} and the student's {self.grafted}: pair them")
        check_blocks(teacher, teacher_blocks)
        self.teacher = teacher
        self.teacher_blocks = teacher_blocks
        self.block_steps = block_steps
        self.net_steps = net_steps
        self.checked = False

    def stage(self, done: int) -> tuple[int, int]:
        """The first of the student's blocks that are in the mixed network, and the first behind them."""
        block = done // self.block_steps
        if block < self.grafted:
            return block, block + 1
        return 0, min(2 + (done - self.grafted * self.block_steps) // self.net_steps, self.grafted)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of the mixed network's logits and the teacher's."""
        split = self.split_batch(batch)
        start, stop = self.stage(self._batches_done())
        with torch.no_grad():
            before = run_blocks(self.teacher, self.teacher_blocks[:start], split.teacher)
            theirs = run_blocks(self.teacher, self.teacher_blocks[start:], before)
            if not self.checked and not torch.allclose(theirs, self.teacher(split.teacher), atol=1e-3):
                raise UsageError("teacher_blocks, one after the other, do not give what the teacher does: name all")
        self.checked = True
        student: GraftedStudent = self.student  # pyright: ignore[reportAssignmentType]
        mixed = run_blocks(self.teacher, self.teacher_blocks[stop:], student.run(before, start, stop))
        # every process waits for every gradient
        idle = torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum() * 0
        return self.term_losses({"logits": mixed + idle}, {"logits": theirs}, split.labels)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """What is not in the mixed network has no gradient, and so does not move by its momentum."""
        student: GraftedStudent = self.student  # pyright: ignore[reportAssignmentType]
        moving = {*student.members(*self.stage(self._batches_done())), *self.terms.parameters()}
        for parameter in self.parameters():
            if parameter not in moving:
                parameter.grad = None
