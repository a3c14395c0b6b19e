"""GraftingDistiller: blocks of the student replace blocks of its teacher."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.progress import batches_of
from kd_lightning.core.term import Term
from kd_lightning.losses import LogitMSELoss
from kd_lightning.networks.wrappers.grafted import GraftedStudent, check_blocks, run_blocks
from kd_lightning.schemes.frozen_teacher import FrozenTeacher


class GraftingDistiller(FrozenTeacher):
    """Replace blocks of the teacher by the student's, first each alone and then more and more of them together.

    Of B blocks, the first is trained alone for `block_steps` batches, followed by the teacher's second block, and so on
    to the B-th; then the first two are trained together for `net_steps` batches, and so on to all B, which are trained
    to the end. The terms compare the logits of such a mixed network with the teacher's; only the student's blocks in it
    and the 1x1 convolutions at their ends are trained. No label is needed, and a few samples are enough, because a
    block has few parameters and the blocks around it are trained already.

    Chengchao Shen, Xinchao Wang, Youtan Yin, Jie Song, Sihui Luo, Mingli Song: Progressive Network Grafting for
    Few-Shot Knowledge Distillation. AAAI 2021 (arXiv:2012.04915). The authors have an optimizer and a learning
    rate for each stage; here there is one optimizer, which keeps its state from stage to stage. The other arguments are
    those of `Learner`.

    Args:
        student: The student in blocks.
        teacher: The network that teaches; it is frozen, and in no checkpoint.
        teacher_blocks: The teacher's layers in as many blocks, as for `kd_lightning.networks.wrappers.grafted.Blocks`.
        terms: The losses on the logits; their mean squared error if not given.
        block_steps: Batches for each block alone.
        net_steps: Batches for each number of blocks together.

    Raises:
        UsageError: A number is below 1, teacher and student have different numbers of blocks or share parameters, or a
            term addresses more than the logits; at the first batch: the chain of the teacher's blocks has another
            output than the teacher.

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
            raise UsageError("terms: only the logits of a network that is part teacher and part student are recorded")
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
        """Return the first of the student's blocks in the mixed network, and the first block after them."""
        block = done // self.block_steps
        if block < self.grafted:
            return block, block + 1
        return 0, min(2 + (done - self.grafted * self.block_steps) // self.net_steps, self.grafted)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute the terms on the logits of the mixed network and of the teacher."""
        split = self.split_batch(batch)
        start, stop = self.stage(batches_of(self))
        with torch.no_grad():
            before = run_blocks(self.teacher, self.teacher_blocks[:start], split.teacher)
            theirs = run_blocks(self.teacher, self.teacher_blocks[start:], before)
            if not self.checked and not torch.allclose(theirs, self.teacher(split.teacher), atol=1e-3):
                raise UsageError("teacher_blocks as a chain have another output than the teacher: name all layers")
        self.checked = True
        student: GraftedStudent = self.student  # pyright: ignore[reportAssignmentType]
        mixed = run_blocks(self.teacher, self.teacher_blocks[stop:], student.run(before, start, stop))
        # every process waits for every gradient
        idle = torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum() * 0
        return self.term_losses({"logits": mixed + idle}, {"logits": theirs}, split.labels)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Drop the gradients of parameters outside the mixed network, so that momentum does not change them."""
        student: GraftedStudent = self.student  # pyright: ignore[reportAssignmentType]
        trained = {*student.members(*self.stage(batches_of(self))), *self.terms.parameters()}
        for parameter in self.parameters():
            if parameter not in trained:
                parameter.grad = None
