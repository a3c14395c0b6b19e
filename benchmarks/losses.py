"""Forward and backward of every loss against the best plain torch of the same formula, in one run: `make bench`.

The plain forms stand in `plain.py`. Inputs are those of the MNIST pair at a batch of 64, on one thread. Values and
gradients must agree before anything is timed. What is printed depends on the machine; the quotients should not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import plain
from kd_lightning import losses
from kd_lightning.networks import ConvDiscriminator, Discriminator

TARGET = 1.2
"""Of the quotient ours / plain: what checks and careful numerics may cost."""
TOLERANCE = 1e-4
"""Of values and gradients in float32, relative to their norm."""

Shapes = tuple[int, ...] | list[tuple[int, ...]]
Form = Callable[[Any, Any, Any, Any], Tensor]
"""Called with the loss, for its connectors, and with student, teacher and target."""

N = 64
STUDENT, TEACHER = (N, 32, 6, 6), (N, 128, 6, 6)
STUDENTS, TEACHERS = ([(N, width, size, size) for size in (13, 6, 5)] for width in (32, 128))
TWO_TEACHERS = [TEACHER, (N, 64, 6, 6)]
ROWS = (N, 128), (N, 512)
WIDTHS = [32] * 3, [128] * 3


# ---- what is measured


def labels() -> Tensor:
    return torch.arange(N) * 7 % 10


def edges() -> Tensor:
    """A graph of the 64 samples: each is joined to the ten after it."""
    source = torch.arange(N).repeat_interleave(10)
    return torch.stack((source, (source + torch.arange(10).repeat(N) + 1) % N))


def full_banks() -> nn.Module:
    """Contrastive representation distillation in the midst of training: every image was seen."""
    loss = losses.CRDLoss(128, 512, num_samples=10_000, negatives=4096)
    loss.labels.copy_(torch.arange(10_000) % 10)
    loss.log_means.fill_(1.0)
    return loss


@dataclass(frozen=True)
class Entry:
    """A loss, the shapes it is called with, and its plain form."""

    build: Callable[[], nn.Module]
    student: Shapes
    teacher: Shapes
    form: Form
    target: Callable[[], Any] = labels

    @property
    def name(self) -> str:
        """The loss's class."""
        return type(self.build()).__name__

    @property
    def shapes(self) -> str:
        """Of a sample, student's and teacher's."""
        sides = [["x".join(map(str, shape[1:])) for shape in listed(side)] for side in (self.student, self.teacher)]
        return " | ".join(", ".join(side) for side in (sides if sides[0] != sides[1] else sides[:1]))

    def inputs(self, dtype: torch.dtype) -> tuple[Any, Any, Any]:
        """Student, teacher and target: the same ones at each call."""
        generator = torch.Generator().manual_seed(0)
        student, teacher = (
            [2 * torch.randn(shape, generator=generator, dtype=dtype) for shape in listed(side)]
            for side in (self.student, self.teacher)
        )
        for seen in student:
            seen.requires_grad_()
        student, teacher = (
            made if isinstance(side, list) else made[0]
            for made, side in ((student, self.student), (teacher, self.teacher))
        )
        return student, teacher, self.target()


def listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


ON_LOGITS: list[tuple[Callable[[], nn.Module], Form]] = [
    (losses.TaskLoss, lambda m, s, t, y: F.cross_entropy(s, y)),
    (losses.ProbabilityCrossEntropyLoss, lambda m, s, t, y: F.cross_entropy(s.softmax(1), y)),
    (losses.LogitMSELoss, lambda m, s, t, y: F.mse_loss(s, t)),
    (losses.KDLoss, plain.kd),
    (losses.SoftCrossEntropyLoss, plain.soft_cross_entropy),
    (losses.KLMAELoss, plain.kl_mae),
    (losses.LogitStandardizationKDLoss, plain.logit_standardization),
    (losses.DKDLoss, plain.dkd),
    (losses.DISTLoss, plain.dist),
    (losses.JSDLoss, plain.jsd),
    (losses.TfKDLoss, plain.tf_kd),
    (losses.WSLDLoss, plain.wsld),
    (losses.CTKDLoss, plain.ctkd),
    (losses.AgreeingKDLoss, plain.agreeing_kd),
    (losses.OneHotLoss, plain.one_hot),
    (losses.InformationEntropyLoss, plain.information_entropy),
    (losses.LogitL1Loss, plain.logit_l1),
    (losses.ImpressionLoss, lambda m, s, t, y: F.cross_entropy(s / 20, y)),
]
OF_THREE_TEACHERS: list[tuple[Callable[[], nn.Module], Form]] = [
    (losses.CAMKDLoss, plain.ca_mkd),
    (lambda: losses.EnsembleLoss(losses.KDLoss()), plain.arithmetic_mean),
    (lambda: losses.EnsembleLoss(losses.KDLoss(), losses.geometric_mean), plain.geometric_mean),
]
ENTRIES = [
    *(Entry(build, (N, classes), (N, classes), form) for build, form in ON_LOGITS for classes in (10, 100)),
    *(Entry(build, (N, classes), (N, 3, classes), form) for build, form in OF_THREE_TEACHERS for classes in (10, 100)),
    Entry(
        lambda: losses.CAMKDFeatureLoss(32, [nn.Linear(128, 10), nn.Linear(64, 10)]),
        STUDENT,
        TWO_TEACHERS,
        plain.ca_mkd_feature,
    ),
    Entry(
        lambda: losses.FeatureEnsembleLoss([losses.HintLoss(32, 128), losses.HintLoss(32, 64)]),
        STUDENT,
        TWO_TEACHERS,
        plain.hints,
    ),
    Entry(
        lambda: losses.AttentiveEnsembleLoss(3, features=128),
        [(N, 10), ROWS[0]],
        (N, 3, 10),
        plain.attentive_ensemble,
    ),
    Entry(
        lambda: losses.ModalityGraphLoss(2, 10, student_channels=128, teacher_channels=[512, 512]),
        [(N, 10), ROWS[0]],
        [(N, 2, 10), ROWS[1], ROWS[1]],
        plain.modality_graph,
    ),
    Entry(losses.ActivationLoss, ROWS[0], ROWS[0], plain.activation),
    Entry(
        losses.ActivationRecordLoss,
        [TEACHER, (N, 10)],
        [TEACHER, (N, 10)],
        plain.activation_record,
        lambda: torch.ones(N, 128 * 36 + 10),
    ),
    Entry(losses.TotalVariationLoss, (N, 3, 28, 28), (N, 3, 28, 28), plain.total_variation),
    Entry(
        losses.BatchNormStatisticsLoss,
        [TEACHER, (128,), (128,)],
        [TEACHER, (128,), (128,)],
        plain.batch_norm_statistics,
    ),
    Entry(lambda: losses.LSPLoss(sigma=1000.0), *ROWS, plain.lsp, edges),  # as far apart as these samples are
    Entry(
        lambda: losses.AdversarialLoss(Discriminator(10, classes=10), classes=10), (N, 10), (N, 10), plain.adversarial
    ),
    Entry(
        lambda: losses.LeastSquaresAdversarialLoss(ConvDiscriminator(128), nn.Conv2d(32, 128, 1)),
        STUDENT,
        TEACHER,
        lambda m, s, t, y: (1 - m.discriminator(m.connector(s)).sigmoid()).square().mean(),
    ),
    Entry(losses.FeatureMSELoss, TEACHER, TEACHER, lambda m, s, t, y: F.mse_loss(s, t)),
    Entry(lambda: losses.HintLoss(32, 128), STUDENT, TEACHER, plain.hint),
    Entry(losses.AttentionTransferLoss, STUDENT, TEACHER, plain.attention_transfer),
    Entry(losses.AttentionTransferLoss, STUDENTS, TEACHERS, plain.attention_transfers),
    Entry(losses.NSTLoss, STUDENT, TEACHER, plain.nst),
    Entry(losses.NSTLoss, STUDENTS[0], TEACHERS[0], plain.nst_of_channels),
    Entry(lambda: losses.CWDLoss(32, 128), STUDENT, TEACHER, plain.cwd),
    Entry(lambda: losses.ABLoss(*WIDTHS), STUDENTS, TEACHERS, plain.ab),
    Entry(lambda: losses.OFDLoss(*WIDTHS), STUDENTS, TEACHERS, plain.ofd),
    Entry(lambda: losses.FactorTransferLoss(32, 64), STUDENT, (N, 64, 6, 6), plain.factor_transfer),
    Entry(losses.FSPLoss, STUDENTS, STUDENTS, plain.fsp),
    Entry(lambda: losses.MGDLoss(32, 128), STUDENT, TEACHER, plain.mgd),
    Entry(lambda: losses.VIDLoss(32, 128), STUDENT, TEACHER, plain.vid),
    Entry(lambda: losses.SRDLoss(32, 128), STUDENT, TEACHER, plain.srd),
    Entry(losses.SADLoss, STUDENTS[1], STUDENTS[2], plain.sad),
    Entry(lambda: losses.AFDLoss(*WIDTHS), STUDENTS, TEACHERS, plain.afd),
    Entry(lambda: losses.ReviewKDLoss(*WIDTHS), STUDENTS, TEACHERS, plain.review_kd),
    Entry(lambda: losses.SemCKDLoss([32] * 2, [128] * 2, N, channels=64), STUDENTS[1:], TEACHERS[1:], plain.semckd),
    Entry(losses.ParameterDistributionLoss, (32, 32, 3, 3), (128, 128, 3, 3), plain.parameter_distribution),
    Entry(losses.RKDLoss, *ROWS, plain.rkd),
    Entry(losses.SPLoss, STUDENT, TEACHER, plain.sp),
    Entry(losses.CCLoss, *ROWS, plain.cc),
    Entry(losses.PKTLoss, *ROWS, plain.pkt),
    Entry(losses.IRGLoss, [*STUDENTS, (N, 10)], [*TEACHERS, (N, 10)], plain.irg),
    Entry(lambda: losses.LocalityPreservingLoss(width=32.0), *ROWS, plain.locality_preserving),
    Entry(lambda: losses.MultiHeadGraphLoss(*WIDTHS), STUDENTS, TEACHERS, plain.multi_head_graph),
    Entry(lambda: losses.InBatchCRDLoss(128, 512), *ROWS, plain.in_batch_crd),
    Entry(full_banks, *ROWS, plain.crd, lambda: [labels(), torch.arange(N)]),
]


# ---- measuring


Step = Callable[[], list[Tensor]]
"""Forward and backward: gives the value, and the gradients of the student's side and of what the loss learns with."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a step, the medians over the rounds, and that of the quotients within a round."""

    ours: float
    plain: float
    ratio: float


def both(entry: Entry, dtype: torch.dtype = torch.float32) -> tuple[Step, Step]:
    """The step of the loss and that of its plain form, with the same weights and on the same inputs."""

    def step(loss: nn.Module, call: Callable[..., Tensor]) -> Step:
        student, teacher, target = entry.inputs(dtype)
        wanted = [*listed(student), *(p for p in loss.parameters() if p.requires_grad)]

        def run() -> list[Tensor]:
            value = call(student, teacher, target)
            return [value, *torch.autograd.grad(value, wanted)]

        return run

    torch.manual_seed(0)
    ours = entry.build().to(dtype)
    theirs = deepcopy(ours)
    return step(ours, ours), step(theirs, lambda *inputs: entry.form(theirs, *inputs))


def disagreement(entry: Entry, dtype: torch.dtype = torch.float32) -> float:
    """How far the values, or the gradients in all, lie apart, relative to their norm."""
    found: list[list[Tensor]] = []
    for step in both(entry, dtype):
        torch.manual_seed(0)
        value, *gradients = step()
        found.append([value.detach().view(1), torch.cat([gradient.flatten() for gradient in gradients])])
    return max(((ours - plain).norm() / plain.norm()).item() for ours, plain in zip(*found, strict=True))


def measure(entry: Entry, rounds: int = 15, seconds: float = 0.01) -> Measured:
    """Time of this process's own, ours and plain in turn, each for `seconds` or once."""
    steps = both(entry)
    for step in steps:
        step()
    repeats = [max(1, round(seconds / timed(step, 1))) for step in steps]
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            times[side].append(timed(steps[side], repeats[side]))
    return Measured(*map(median, times), median(ours / plain for ours, plain in zip(*times, strict=True)))


def timed(step: Step, repeats: int) -> float:
    begin = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - begin) / repeats


def main() -> None:
    torch.set_num_threads(1)
    found: list[tuple[Entry, float, Measured]] = []
    for entry in track(ENTRIES, transient=True):
        found.append((entry, disagreement(entry), measure(entry)))
    found.sort(key=lambda row: -row[2].ratio)
    table = Table(title=f"forward and backward of {N} samples on one thread, microseconds")
    for column in ("loss", "shape, student's | teacher's"):
        table.add_column(column)
    for column in ("apart by", "ours", "plain", "ratio", ""):
        table.add_column(column, justify="right")
    for entry, apart, measured in found:
        table.add_row(
            entry.name,
            entry.shapes,
            f"{apart:.0e}" + ("" if apart <= TOLERANCE else ": not the same!"),
            f"{1e6 * measured.ours:,.0f}",
            f"{1e6 * measured.plain:,.0f}",
            f"{measured.ratio:.2f}",
            "" if measured.ratio <= TARGET else f"> {TARGET}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    within = sum(measured.ratio <= TARGET for _, _, measured in found)
    console.print(f"{within} of {len(found)} are within {TARGET} of plain torch")


if __name__ == "__main__":
    main()
