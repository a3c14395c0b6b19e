"""Forward and backward of every loss against the best plain torch of the same formula, in one run: `make bench`.

The plain forms are found in the losses' test files (`PLAIN`). Inputs are those of the MNIST pair at a batch of 64, on
one thread. Values and gradients must agree before anything is timed. Absolute times depend on the machine; ratios
should not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from kd_lightning import losses
from tests.losses.plain import Form, N, Plain, Shapes

TESTS = Path(__file__).parents[1] / "tests" / "losses"
TARGET = 1.2
"""Largest ratio ours / plain that is accepted as the cost of checks and careful numerics."""
TOLERANCE = 1e-4
"""Of values and gradients in float32, relative to their norm."""


# ---- the losses


@dataclass(frozen=True)
class Entry:
    """A loss, the shapes it is called with, and its plain form."""

    build: Callable[[], nn.Module]
    student: Shapes
    teacher: Shapes
    form: Form
    target: Callable[[], Any]

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
        for activations in student:
            activations.requires_grad_()
        student, teacher = (
            made if isinstance(side, list) else made[0]
            for made, side in ((student, self.student), (teacher, self.teacher))
        )
        return student, teacher, self.target()


def listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def plain_forms() -> dict[str, Plain]:
    """The plain forms in the losses' test files, by the loss's name and, for more than one, the inputs' name."""
    found: dict[str, Plain] = {}
    for path in sorted(TESTS.glob("*/test_*.py")):
        if "\nPLAIN = " in path.read_text(encoding="utf-8"):
            found |= import_module(f"tests.losses.{path.parent.name}.{path.stem}").PLAIN
    return found


def entries() -> Iterator[Entry]:
    """An entry for each plain form, or two for a form on logits: 10 classes and 100."""
    for name, plain in plain_forms().items():
        build = plain.build or getattr(losses, name.partition(" of ")[0])
        if plain.student is not None and plain.teacher is not None:
            yield Entry(build, plain.student, plain.teacher, plain.form, plain.target)
            continue
        for classes in (10, 100):
            teacher = (N, plain.teachers, classes) if plain.teachers else (N, classes)
            yield Entry(build, (N, classes), teacher, plain.form, plain.target)


ENTRIES = list(entries())


# ---- measuring


Step = Callable[[], list[Tensor]]
"""Forward and backward: returns the value, and the gradients of the student's side and of the loss's parameters."""


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
