"""The same distillation step in other libraries' loops: `make bench`. torchdistill is in the `foreign` extra.

Each loop has the usual input pipeline of its users: MNIST as PIL images through transforms and a DataLoader in the main
process. In a second table all loops read the same bytes in memory. Networks, batch, optimizer and loss
(KL at T 3 and cross-entropy, half each) are the same everywhere.

python -m benchmarks.peers [--rounds 10]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.rounds import loop, ratio, rounds
from benchmarks.speed import CHANNELS_LAST, FUSED, Bench, cpu
from kd_lightning.networks import StudentConvNet, TeacherConvNet

CACHED_IMAGES = 3_000
"""Number of samples that have a file each; the loop repeats them."""
STEPS = 40
Batches = Iterator[tuple[Any, ...]]


class Digits(Dataset[tuple[Any, ...]]):
    """MNIST as torchvision's data set gives it; with a folder, a teacher's output for each image is a file in it."""

    def __init__(self, bench: Bench, folder: Path | None = None) -> None:
        from torchvision import transforms

        self.images, self.labels = bench.data.train_set
        self.transform: Any = transforms.Compose([transforms.Grayscale(3), transforms.ToTensor()])
        self.folder = folder

    def __len__(self) -> int:
        return CACHED_IMAGES if self.folder else len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        from PIL import Image

        x, y = self.transform(Image.fromarray(self.images[index, 0].numpy())), int(self.labels[index])
        shown = {} if self.folder is None else {"teacher": torch.load(self.folder / f"{index}.pt", weights_only=True)}
        return x, y, shown


def from_loader(bench: Bench, folder: Path | None = None) -> Batches:
    """Yield batches for ever, through the usual input pipeline."""
    while True:
        yield from DataLoader(Digits(bench, folder), batch_size=64, shuffle=True)


def from_memory(bench: Bench) -> Batches:
    """Yield batches for ever, from bytes in memory."""
    while True:
        yield *bench.batch(), {}


def both(seen: Tensor, shown: Tensor, y: Tensor) -> Tensor:
    """Compute the loss in plain torch."""
    kl = F.kl_div(F.log_softmax(seen / 3, dim=1), F.softmax(shown / 3, dim=1), reduction="batchmean")
    return 0.5 * F.cross_entropy(seen, y) + 0.5 * 9 * kl


class Meter:
    """A running mean, as in training scripts."""

    def __init__(self) -> None:
        self.sum, self.count, self.mean = 0.0, 0, 0.0

    def update(self, value: float, number: int) -> None:
        """Add the value of a batch."""
        self.sum += value * number
        self.count += number
        self.mean = self.sum / self.count


def meters(batches: Batches, cached: bool = False) -> Callable[[], None]:
    """Make a loop in mdistiller's form: meters of time, loss and accuracies at each step, and a progress line.

    With a cache, the teacher's outputs come from the loader, one file a sample.
    """
    student, teacher = StudentConvNet(), TeacherConvNet().eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    kept = {name: Meter() for name in ("data", "time", "loss", "top1", "top5")}

    def step() -> None:
        started = time.time()
        x, y, extra = next(batches)
        kept["data"].update(time.time() - started, len(y))
        optimizer.zero_grad()
        seen = student(x)
        if cached:
            shown = extra["teacher"]
        else:
            with torch.no_grad():
                shown = teacher(x)
        loss = both(seen, shown, y)
        loss.backward()
        optimizer.step()
        hits = seen.topk(5, dim=1).indices == y.unsqueeze(1)
        kept["loss"].update(loss.item(), len(y))
        kept["top1"].update(hits[:, :1].sum().item() / len(y), len(y))
        kept["top5"].update(hits.sum().item() / len(y), len(y))
        kept["time"].update(time.time() - started, len(y))
        " ".join(f"{name}: {meter.mean:.4f}" for name, meter in kept.items())

    return step


def torchdistill(batches: Batches) -> Callable[[], None]:
    """Make a loop of torchdistill's box, with a live teacher."""
    for name in ("datasets", "models", "transforms"):  # it searches them among the loaded modules
        importlib.import_module(f"torchvision.{name}")
    from torchdistill.core.distillation import get_distillation_box  # pyright: ignore

    ends = {"student_module_path": ".", "student_module_io": "output"}
    ends |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    config = {
        "num_epochs": 1,
        "train_data_loader": {},
        "val_data_loader": {},
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False, "wrapper": None},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True, "wrapper": None},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {**ends, "temperature": 3.0, "alpha": 0.5, "beta": 0.5},
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    box = get_distillation_box(
        TeacherConvNet(), StudentConvNet(), {}, config, torch.device("cpu"), None, distributed=False, lr_factor=1
    )

    def step() -> None:
        x, y, extra = next(batches)
        loss = box.forward_process(x, y, extra)
        box.post_forward_process(loss=loss)
        loss.item()  # as its scripts' metric logger does at each step

    return step


def write_files(bench: Bench, folder: Path) -> None:
    """Write the teacher's outputs, one file a sample."""
    folder.mkdir()
    teacher: nn.Module = TeacherConvNet().eval().requires_grad_(False)
    for start in range(0, CACHED_IMAGES, 500):
        rows = torch.arange(start, start + 500)
        x = bench.data.train_set.images[rows].div(255).expand(-1, 3, -1, -1)
        for index, logits in zip(rows.tolist(), teacher(x), strict=True):
            torch.save(logits.clone(), folder / f"{index}.pt")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    number = parser.parse_args().rounds
    with TemporaryDirectory() as place:
        bench = Bench(Path(place))
        write_files(bench, Path(place) / "files")
        fast = (CHANNELS_LAST, FUSED, bench.cache())
        ours = bench.distilled(*fast)
        ours()  # fills the cache
        steps = {
            "mdistiller's form": meters(from_loader(bench)),
            "the same, a file a sample cached": meters(from_loader(bench, Path(place) / "files"), cached=True),
            "mdistiller's form, from memory": meters(from_memory(bench)),
        }
        if importlib.util.find_spec("torchdistill"):
            steps["torchdistill's box"] = torchdistill(from_loader(bench))
            steps["torchdistill's box, from memory"] = torchdistill(from_memory(bench))
        else:
            print("torchdistill is not installed: make .venv/foreign", file=sys.stderr)
        found = rounds({"ours": ours, **{name: partial(loop, step, STEPS) for name, step in steps.items()}}, number)
    table = Table(title=f"{cpu()}, torch {torch.__version__}, CPU seconds of a step over ours, one thread")
    for column in ("", "median", "95 % interval", "limit", "milliseconds"):
        table.add_column(column)
    for name in steps:
        median, low, high = ratio(found[name], found["ours"])
        limit = "" if "memory" in name else ">= 1.3" if "cached" in name else ">= 3"
        milliseconds = sorted(found[name])[number // 2] * 1000
        table.add_row(name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", limit, f"{milliseconds:.1f}")
    table.add_row("ours", "1", "", "", f"{sorted(found['ours'])[number // 2] * 1000:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
