"""Cost of distillation beside the student alone, through the shipped configurations and the Trainer: `make bench`.

All defaults are on: progress bar, TensorBoard, metrics and checkpoints. Times are CPU seconds of one thread, measured
alternately in rounds. The output has ratios, each with its goal.

python -m benchmarks.speed [--rounds 20]
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.calls import calls_a_step, peak_memory
from benchmarks.rounds import fit, fresh, loop, ratio, rounds
from kd_lightning.data import MNISTDataModule
from kd_lightning.networks import StudentConvNet, TeacherConvNet

CHANNELS_LAST = "--trainer.callbacks+=ChannelsLast"
FUSED = "--model.optimizer.init_args.fused=true"
ALONE = "--config=configs/mnist/student.yaml"
DISTILLED = "--config=configs/mnist/distilled.yaml"
EPOCH = 859
EPOCHS = 5


class Bench:
    """The runs in one directory, and their teacher."""

    def __init__(self, place: Path) -> None:
        self.place = place
        torch.manual_seed(0)
        teacher = TeacherConvNet()
        self.teacher = place / "teacher.ckpt"
        torch.save(
            {"state_dict": {f"student.{name}": value for name, value in teacher.state_dict().items()}}, self.teacher
        )
        self.data = MNISTDataModule()
        self.order = self.data.split[0][torch.randperm(len(self.data.split[0]))].split(64)
        self.at = 0

    def alone(self, *more: str) -> Callable[[], float]:
        """Make a run of the student alone."""
        return lambda: fit(ALONE, fresh(self.place), *more)

    def distilled(self, *more: str) -> Callable[[], float]:
        """Make a run of the student with the teacher."""
        return lambda: fit(DISTILLED, f"--model.teacher.init_args.checkpoint={self.teacher}", fresh(self.place), *more)

    def cache(self) -> str:
        """Return the argument that caches the teacher's outputs."""
        cache = f"{{class_path: TeacherCache, init_args: {{cache_dir: {self.place / 'cache'}, precision: bf16}}}}"
        return f"--trainer.callbacks+={cache}"

    def in_bfloat16(self) -> str:
        """Return the argument that runs the teacher in bfloat16."""
        plain = f"network: {{class_path: TeacherConvNet}}, checkpoint: {self.teacher}"
        load = f"{{class_path: kd_lightning.networks.load_teacher, init_args: {{{plain}}}}}"
        return f"--model.teacher={{class_path: BFloat16Autocast, init_args: {{network: {load}}}}}"

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the next batch of a plain loop on resident bytes."""
        index = self.order[self.at % EPOCH]
        self.at += 1
        images, labels = self.data.train_set
        return images.index_select(0, index).div(255).expand(-1, 3, -1, -1), labels.index_select(0, index)

    def bare(self, compiled: bool = False, fast: bool = False) -> Callable[[], float]:
        """Make a plain loop of the student alone."""
        student = StudentConvNet()
        if fast:
            student = student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=fast)

        def loss_of(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(student(x), y)

        loss = torch.compile(loss_of) if compiled else loss_of

        def step() -> None:
            optimizer.zero_grad()
            loss(*self.batch()).backward()
            optimizer.step()

        return lambda: loop(step)

    def teacher_forward(self, halves: bool) -> Callable[[], float]:
        """Make a step of a live teacher alone."""
        teacher = TeacherConvNet().eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=halves):
                teacher(self.batch()[0])

        return lambda: loop(step, steps=50)


def notebook(bench: Bench) -> Callable[[], float]:
    """Make the origin's loop: PIL images through transforms and a DataLoader, a teacher with gradients, clipping."""
    from PIL import Image
    from torchvision import transforms

    to_tensor: Any = transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()])
    images, labels = bench.data.train_set

    class Digits(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return to_tensor(Image.fromarray(images[index, 0].numpy())), int(labels[index])

    loader = torch.utils.data.DataLoader(Digits(), batch_size=64, shuffle=True)
    student, teacher, batches = StudentConvNet(), TeacherConvNet(), iter(loader)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        x, y = batch
        seen, shown = student(x), teacher(x)
        soft = -(F.log_softmax(seen / 3, dim=1) * F.softmax(shown / 3, dim=1)).sum(dim=1).mean()
        loss = 0.5 * F.cross_entropy(seen.softmax(dim=1), y) + 0.5 * soft
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        loss.item()
        (seen.argmax(dim=1) == y).sum().item()

    return lambda: loop(step, steps=50)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    number = parser.parse_args().rounds
    console = Console(width=140)
    table = Table(title=f"{cpu()}, torch {torch.__version__}, lightning {lightning.__version__}, one thread")
    for column in ("", "median", "95 % interval", "limit", ""):
        table.add_column(column)

    def row(name: str, found: float, limit: float, interval: str = "", at_least: bool = False) -> None:
        met = found >= limit if at_least else found <= limit
        table.add_row(
            name, f"{found:.4g}", interval, f"{'>=' if at_least else '<='} {limit:g}", "" if met else "missed"
        )

    def row_of(name: str, ours: list[float], theirs: list[float], limit: float, at_least: bool = False) -> None:
        found, low, high = ratio(ours, theirs)
        row(name, found, limit, f"{low:.3f} to {high:.3f}", at_least)

    with TemporaryDirectory() as place:
        bench = Bench(Path(place))
        row("P3 Python calls a step, alone", calls_a_step("student", bench.teacher), 300)
        row("P3 Python calls a step, distilled", calls_a_step("distilled", bench.teacher, CACHED, FUSED), 300)
        row(
            "P3 with clipping, a scheduler and a temperature",
            calls_a_step("distilled", bench.teacher, CACHED, FUSED, *BUSY),
            400,
        )
        row("P3 Lightning's own loop, alone", calls_a_step("student", bench.teacher, LIGHTNINGS_LOOP), 1300)
        row("P7 peak memory over import lightning, MiB", peak_memory(bench.teacher), 140)
        fast = (CHANNELS_LAST, FUSED)
        bench.distilled(*fast, bench.cache())()  # fills the cache, which is warm from here on
        kinds = {
            "notebook": notebook(bench),
            "bare": bench.bare(),
            "alone": bench.alone(),
            "bare fast": bench.bare(fast=True),
            "alone fast": bench.alone(*fast),
            "cached": bench.distilled(*fast, bench.cache()),
            "teacher bf16": bench.teacher_forward(halves=True),
            "live": bench.distilled(*fast),
            "live, teacher bf16": bench.distilled(*fast, bench.in_bfloat16()),
            "alone bf16": bench.alone(*fast, "--trainer.precision=bf16-mixed"),
            "live bf16": bench.distilled(*fast, "--trainer.precision=bf16-mixed"),
            "compiled": bench.bare(fast=True, compiled=True),
        }
        found = rounds(kinds, number)
        milliseconds = {name: sorted(values)[len(values) // 2] * 1000 for name, values in found.items()}
        steps = EPOCH * EPOCHS
        ours = [EPOCH * t + steps * c for t, c in zip(found["teacher bf16"], found["cached"], strict=True)]
        row_of(
            "P1 five epochs: the notebook's / distilled", [938 * EPOCHS * s for s in found["notebook"]], ours, 6, True
        )
        row_of("P2 distilled / alone, warm cache", found["cached"], found["alone fast"], 1.03)
        alone = [steps * s for s in found["alone fast"]]
        row_of("P2 distilled / alone, with the teacher's pass", ours, alone, 1.12)
        row_of("P3 everything on / bare loop", found["alone"], found["bare"], 1.05)
        row_of("P3 the same, channels_last and fused", found["alone fast"], found["bare fast"], 1.05)
        row_of("P5 live teacher / alone", found["live"], found["alone fast"], 1.6)
        row_of("P5 the same, the teacher in bfloat16", found["live, teacher bf16"], found["alone fast"], 1.6)
        row_of("P5 the same in bf16-mixed", found["live bf16"], found["alone bf16"], 1.6)
        row_of("P6 compiled / eager step", found["compiled"], found["bare"], 0.6)
        row_of("   channels_last and fused / eager step", found["bare fast"], found["bare"], 1)
    console.print(table)
    console.print("CPU milliseconds: " + ", ".join(f"{name} {value:.3g}" for name, value in milliseconds.items()))


CACHED = "--trainer.callbacks+=TeacherCache"
LIGHTNINGS_LOOP = "--trainer.callbacks+={class_path: FastLoop, init_args: {enabled: false}}"
BUSY = (
    "--trainer.gradient_clip_val=1.0",
    "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 5000}}",
    "--model.lr_interval=step",
    "--trainer.callbacks+={class_path: TemperatureSchedule, init_args: {schedule: {class_path: Constant}}}",
    "--trainer.callbacks.init_args.schedule.init_args.value=4.0",
)


def cpu() -> str:
    """Return the name of the processor."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or os.uname().machine


if __name__ == "__main__":
    main()
