"""Runs of all seeds and variants in parallel; finished runs are not repeated."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.origin.notebook import (
    BATCH_SIZE,
    TEST_IMAGES,
    TRAIN_IMAGES,
    VARIANTS,
    LossIsNaN,
    Overflow,
    batches,
    evaluate,
    study,
    train_epoch,
)
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.networks.images.convnet import TeacherConvNet

Row = dict[str, Any]  # figures of one epoch
Result = dict[str, Any]  # content of a run's JSON file


@dataclass(frozen=True)
class Job:
    """One network of one seed; it writes `folder/seed_N/VARIANT.pt` and, last, `VARIANT.json`."""

    seed: int
    variant: str
    epochs: int
    limit_batches: int | None

    @property
    def seconds(self) -> float:
        """Estimate the time on one core."""
        return VARIANTS[self.variant].epoch_seconds * self.epochs

    def finished(self, folder: Path) -> Result | None:
        """Return the result, or None; one with other settings is neither used nor overwritten."""
        path = folder / f"seed_{self.seed}" / f"{self.variant}.json"
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        if result["job"] != asdict(self):
            raise SystemExit(f"{path} holds {result['job']}, not {asdict(self)}: remove it, or name another --folder")
        return result

    def run(self, folder: Path, tell: Callable[[Job, Row | None], None]) -> None:
        """Train the network and report each epoch; None means that the NaN assertion stopped it."""
        variant, folder = VARIANTS[self.variant], folder / f"seed_{self.seed}"
        limit = None if self.limit_batches is None else self.limit_batches * BATCH_SIZE
        mnist = MNISTDataModule()
        shuffle = torch.Generator().manual_seed(self.seed)  # the networks of one seed have the same batches
        torch.manual_seed(self.seed)  # and their students start from the same weights
        network = variant.network()
        teacher = load_teacher(folder / "teacher.pt") if variant.taught else None
        optimizer = torch.optim.Adam(network.parameters())
        overflow, rows, stopped, start = Overflow(), list[Row](), False, perf_counter()
        try:
            for epoch in range(1, self.epochs + 1):
                data = batches(mnist.train_set, torch.randperm(TRAIN_IMAGES, generator=shuffle)[:limit])
                row = {"epoch": epoch} | train_epoch(network, teacher, variant, optimizer, data, overflow)
                data = batches(mnist.test_set, torch.arange(TEST_IMAGES)[:limit])
                row["test_loss"], logits, target = evaluate(network, teacher, variant.loss, data)
                rows.append(row | study(logits, target))
                tell(self, rows[-1])
        except LossIsNaN:
            stopped = True
            tell(self, None)
        result = {
            "job": asdict(self),
            "epochs": rows,
            "stopped": stopped,
            "overflow": asdict(overflow),
            "seconds": perf_counter() - start,
            "torch": torch.__version__,
        }
        replace(folder / f"{self.variant}.pt", lambda path: torch.save(network.state_dict(), path))
        replace(folder / f"{self.variant}.json", lambda path: path.write_text(json.dumps(result, indent=1)))


def load_teacher(path: Path) -> nn.Module:
    """Return the frozen teacher; in the notebook it collected gradients, which takes time and changes no number."""
    teacher = TeacherConvNet()
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.requires_grad_(False)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all: `Path.replace` is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


class Progress:
    """Prints one line for each epoch: the notebook's figures, and the time left."""

    def __init__(self, jobs: list[Job]) -> None:
        self.start, self.done = perf_counter(), 0.0
        self.left = {job: job.epochs for job in jobs}

    def __call__(self, job: Job, row: Row | None) -> None:
        """Print the line; without a row the run has stopped."""
        self.left[job] = job.epochs - row["epoch"] if row else 0
        self.done += VARIANTS[job.variant].epoch_seconds
        left = sum(VARIANTS[job.variant].epoch_seconds * epochs for job, epochs in self.left.items())
        minutes = math.ceil(left * (perf_counter() - self.start) / self.done / 60)
        what = describe(row) if row else "the loss is NaN: stopped"
        print(f"seed {job.seed} · {job.variant} · {what} · {minutes} min left", flush=True)


def describe(row: Row) -> str:
    """Format an epoch as the notebook printed it."""
    return (
        f"epoch {row['epoch']} · loss: train {row['train_loss']:.4f}, test {row['test_loss']:.4f} · "
        f"accuracy: train {row['train_accuracy']:.2%}, test {row['test_accuracy']:.2%} · "
        f"{row['iterations_per_second']:.1f} it/s"
    )


def start_worker(queue: Any) -> None:
    """Keep the queue to the parent; two threads a process on two cores are slower than one."""
    global _queue
    _queue = queue
    torch.set_num_threads(1)


def run_in_worker(job: Job, folder: Path) -> None:
    """Run a job and report its epochs through the queue."""
    job.run(folder, lambda *news: _queue.put(news))


def run_all(jobs: list[Job], folder: Path, workers: int) -> None:
    """Run unfinished jobs, students after their teachers, `workers` at a time."""
    jobs = [job for job in jobs if job.finished(folder) is None]
    minutes = math.ceil(sum(job.seconds for job in jobs) / workers / 60)
    print(f"{len(jobs)} runs to do, about {minutes} min with {workers} workers", flush=True)
    progress, context = Progress(jobs), multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, start_worker, (queue,)) as pool:
        for taught in (False, True):
            pending = {
                pool.submit(run_in_worker, job, folder) for job in jobs if VARIANTS[job.variant].taught == taught
            }
            while pending:
                done, pending = wait(pending, timeout=0.5)
                while not queue.empty():
                    progress(*queue.get())
                if failed := [future for future in done if future.exception()]:
                    pool.shutdown(cancel_futures=True)
                    failed[0].result()  # raises the worker's error
