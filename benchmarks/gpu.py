"""Seconds of a distilled epoch on a GPU, beside an eager bare loop and the student alone: `make bench-gpu`.

Networks and terms are those of the shipped configurations, batches of 64 of MNIST's 55,000 training images. Runs go
through the command line with all defaults (TensorBoard, metrics, checkpoints, validation) except the progress bar.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from kd_lightning.__main__ import main as command_line
from kd_lightning.data import MNISTDataModule
from kd_lightning.networks import StudentConvNet, TeacherConvNet

EPOCHS = 5
BATCH = 64
CACHE = "--trainer.callbacks+=TeacherCache"
GRAPH = "--config=configs/parts/cuda_graph.yaml"
CLOCK = "--trainer.callbacks+=benchmarks.gpu.Clock"
FUSED = "--model.optimizer.init_args.fused=true"


class Clock(Callback):
    """Measure the time of each epoch, with validation and checkpoints."""

    epochs: list[float] = []  # noqa: RUF012 - a class attribute: the command line builds the callback itself

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        torch.cuda.synchronize()
        self.epochs.append(time.perf_counter() - self.started)


# ---- the command line


def fit(config: str, folder: Path, *more: str) -> tuple[float, float]:
    """Return the seconds of the median epoch and of the whole fit."""
    given = [f"--config=configs/mnist/{config}.yaml", *more, CLOCK, f"--trainer.default_root_dir={folder}"]
    if config == "distilled":
        given.append(f"--model.teacher.init_args.checkpoint={folder.parent}/teacher/last.ckpt")
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=gpu"]
    Clock.epochs.clear()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = command_line(["fit", *given, *quiet, "--trainer.devices=1", f"--trainer.max_epochs={EPOCHS}"])
    if code:
        sys.exit(code)
    return median(Clock.epochs), time.perf_counter() - start


# ---- bare loops


def step(student: torch.nn.Module, rows: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], None]:
    """Take a step in plain torch on the given rows: alone, or with the logits of a teacher."""
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True, capturable=True)

    def run(index: Tensor) -> None:
        x, y, *shown = rows(index)
        logits = student(x)
        loss = F.cross_entropy(logits, y)
        if shown:
            seen, told = (F.log_softmax(part / 3, dim=1) for part in (logits, shown[0]))
            loss = 0.5 * loss + 0.5 * 9 * F.kl_div(seen, told, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def graphed(run: Callable[[Tensor], None], place: Tensor) -> Callable[[Tensor], None]:
    """Record the same step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            run(place)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(place)

    def replay(index: Tensor) -> None:
        place.copy_(index)
        graph.replay()

    return replay


def bare(kind: str) -> float:
    """Return the seconds of the median epoch of a loop in plain torch on data that is on the GPU."""
    data = MNISTDataModule()
    images, labels = (tensor.cuda() for tensor in data.train_set)
    shown = torch.randn(len(labels), 10, device="cuda")
    teacher = TeacherConvNet().cuda().eval().requires_grad_(False)

    def rows(index: Tensor) -> tuple[Tensor, ...]:
        x = images.index_select(0, index).div(255).expand(-1, 3, -1, -1)
        return x, labels.index_select(0, index)

    def with_cache(index: Tensor) -> tuple[Tensor, ...]:
        return *rows(index), shown.index_select(0, index)

    def with_teacher(index: Tensor) -> tuple[Tensor, ...]:
        x, y = rows(index)
        return x, y, teacher(x)

    run = step(StudentConvNet().cuda(), {"alone": rows, "live": with_teacher}.get(kind.split()[0], with_cache))
    if "graph" in kind:
        run = graphed(run, torch.arange(BATCH, device="cuda"))
    seconds: list[float] = []
    for _ in range(EPOCHS):
        order = data.split[0][torch.randperm(len(data.split[0]))].cuda()
        batches = list(order.split(BATCH))[: len(order) // BATCH]
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in batches:
            run(index)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> None:
    """Measure and print the table."""
    if not torch.cuda.is_available():
        sys.exit("there is no GPU: nothing is measured")
    table = Table(title=f"{torch.cuda.get_device_name()}, torch {torch.__version__}, lightning {lightning.__version__}")
    table.add_column("seconds an epoch of 859 steps")
    table.add_column("bare loop", justify="right")
    table.add_column("kd-lightning fit", justify="right")
    table.add_column(f"whole fit, {EPOCHS} epochs", justify="right")
    with TemporaryDirectory() as place:
        folder = Path(place)
        teacher, whole_teacher = fit("teacher", folder / "teacher", GRAPH)
        runs = {
            "student alone": (bare("alone"), fit("student", folder / "a", FUSED)),
            "student alone, replayed": (bare("alone graph"), fit("student", folder / "b", GRAPH)),
            "distilled, live teacher": (bare("live"), fit("distilled", folder / "c", FUSED)),
            "distilled, live teacher, replayed": (bare("live graph"), fit("distilled", folder / "d", GRAPH)),
            "distilled, cached teacher": (bare("cached"), fit("distilled", folder / "e", FUSED, CACHE)),
            "distilled, cached teacher, replayed": (
                bare("cached graph"),
                fit("distilled", folder / "f", GRAPH, CACHE),
            ),
        }
    table.add_row("teacher, replayed", "", f"{teacher:.3f}", f"{whole_teacher:.1f}")
    for name, (loop, (epoch, whole)) in runs.items():
        table.add_row(name, f"{loop:.3f}", f"{epoch:.3f}", f"{whole:.1f}")
    console = Console(width=120)
    console.print(table)
    three = whole_teacher + runs["student alone, replayed"][1][1] + runs["distilled, cached teacher, replayed"][1][1]
    console.print(f"teacher, student alone and distilled, {EPOCHS} epochs each, replayed: {three:.1f} s (goal 10)")


if __name__ == "__main__":
    from benchmarks import gpu  # the module whose clock the command line imports

    gpu.main()
