"""Scaling of distillation's cost with images, classes and the teacher's width: `make growth`.

Measured are the parts of a step: the look-up of a batch in a cache in memory, the loss with its backward pass, and the
teacher itself. Writes docs/growth.png and prints its numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from kd_lightning.losses import KDLoss
from kd_lightning.networks import ConvNet, StudentConvNet
from kd_lightning.speed.teacher_cache.lookup_table import LookupTable
from kd_lightning.speed.teacher_cache.training_rows import RowFingerprints

PAGE = Path(__file__).parent.parent / "docs" / "growth.png"
BATCH = 64
IMAGES = (1_000, 10_000, 60_000, 600_000)
CLASSES = (10, 100, 1_000, 10_000, 100_000)
WIDTHS = (32, 64, 128, 256, 512)


class Line(NamedTuple):
    """A measured cost, by a size that it depends on."""

    about: str
    at: tuple[int, ...]
    milliseconds: dict[str, list[float]]


def milliseconds(step: Callable[[], object], repeats: int = 15) -> float:
    """Measure the CPU milliseconds of a step: the median of several, each of as many calls as take 20 ms."""
    step()
    started = time.thread_time()
    step()
    calls = max(1, int(0.02 / max(time.thread_time() - started, 1e-6)))
    found: list[float] = []
    for _ in range(repeats):
        started = time.thread_time()
        for _ in range(calls):
            step()
        found.append((time.thread_time() - started) / calls * 1000)
    return median(found)


def tables(images: int, classes: int = 10) -> LookupTable:
    """Make a lookup table of teacher outputs for consecutive image numbers."""
    index = torch.arange(images)
    return LookupTable(RowFingerprints(index, index * 7), {"logits": torch.randn(images + 1, classes)})


def size(cache: LookupTable) -> float:
    """Return the size in MiB."""
    kept = [cache.position_of, cache.fingerprints, *cache.outputs.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept) / 2**20


def looked_up(cache: LookupTable) -> Callable[[], object]:
    """Look a batch up in the cache, with the inputs compared."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(cache.num_rows, (BATCH,), generator=generator) for _ in range(50)]
    at = 0

    def step() -> object:
        nonlocal at
        at = (at + 1) % len(batches)
        return cache.look_up(batches[at], batches[at] * 7)

    return step


def loss(classes: int) -> Callable[[], object]:
    """Compute the loss of a batch, forward and backward."""
    student, teacher = torch.randn(BATCH, classes, requires_grad=True), torch.randn(BATCH, classes)
    compared = KDLoss()

    def step() -> object:
        student.grad = None
        return compared(student, teacher).backward()

    return step


def network(width: int, learns: bool) -> Callable[[], object]:
    """Pass a batch through a network, and back if it is trained."""
    x, net = torch.rand(BATCH, 3, 28, 28), StudentConvNet() if learns else ConvNet(width).eval().requires_grad_(False)

    def step() -> object:
        output: Tensor = net(x)
        return output.sum().backward() if learns else output

    return step


def measure() -> tuple[list[Line], list[float]]:
    """Measure the lines, and the sizes of the caches in MiB."""
    student = milliseconds(network(32, learns=True))
    caches = [tables(images) for images in IMAGES]
    of_images = {"look-up": [milliseconds(looked_up(cache)) for cache in caches]}
    of_images["loss"] = [milliseconds(loss(10)) for _ in IMAGES]
    wide = [tables(640, classes) for classes in CLASSES]
    of_classes = {
        "look-up": [milliseconds(looked_up(cache)) for cache in wide],
        "loss": [milliseconds(loss(classes)) for classes in CLASSES],
    }
    of_width = {
        "look-up and loss": [milliseconds(looked_up(caches[2])) + milliseconds(loss(10)) for _ in WIDTHS],
        "live teacher": [milliseconds(network(width, learns=False)) for width in WIDTHS],
    }
    for lines in (of_images, of_classes, of_width):
        lines["the student's step"] = [student] * len(next(iter(lines.values())))
    lines = [
        Line("training images", IMAGES, of_images),
        Line("classes", CLASSES, of_classes),
        Line("the teacher's width, channels", WIDTHS, of_width),
    ]
    return lines, [size(cache) for cache in caches]


def draw(lines: list[Line], sizes: list[float]) -> Figure:
    """Draw a panel for each line, and one for the size of the cache."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(1, len(lines) + 1))
    for panel, line in zip(axes, lines, strict=False):
        for (name, values), colour in zip(line.milliseconds.items(), ("#0072B2", "#D55E00", "#000000"), strict=False):
            panel.loglog(line.at, values, marker="o", color=colour, label=name)
        panel.set_xlabel(line.about)
        panel.set_xticks(line.at, [f"{at // 1000}k" if at >= 1000 else str(at) for at in line.at])
        panel.minorticks_off()
        panel.set_ylabel("CPU milliseconds a step of 64")
        panel.legend(fontsize=8)
    axes[-1].loglog(IMAGES, sizes, marker="o", color="#009E73")
    axes[-1].set_xlabel("training images")
    axes[-1].set_ylabel("MiB of the cache, ten logits")
    for panel in axes:
        panel.grid(alpha=0.3)
    return figure


def main() -> None:
    """Measure, draw and print."""
    torch.set_num_threads(1)
    lines, sizes = measure()
    draw(lines, sizes).savefig(PAGE, dpi=110)
    for line in lines:
        for name, values in line.milliseconds.items():
            print(
                f"{line.about}: {name}: " + ", ".join(f"{a:,}: {v:.3f}" for a, v in zip(line.at, values, strict=True))
            )
    slope = (sizes[-1] - sizes[0]) * 2**20 / (IMAGES[-1] - IMAGES[0])
    print(
        "MiB: "
        + ", ".join(f"{a:,}: {v:.2f}" for a, v in zip(IMAGES, sizes, strict=True))
        + f"; {slope:.1f} bytes an image"
    )


if __name__ == "__main__":
    main()
