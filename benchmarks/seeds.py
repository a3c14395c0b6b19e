"""Many seeds of the origin's distillation on logits, checked for overflow and for classes with recall 0: `make seeds`.

The notebook that this project comes from lost whole classes in three runs of five, and overflowed with some teachers.

python -m benchmarks.seeds --teacher packaged:mnist/teacher-0 [--seeds 100] [--epochs 5]
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from kd_lightning import OfflineDistiller, Term, load_teacher
from kd_lightning.callbacks import ChannelsLast, ExactResume, FastLoop, TeacherCache
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import StudentConvNet, TeacherConvNet


def recalls(seed: int, teacher: str, epochs: int, cache: str) -> list[float]:
    """Train a student of a seed and return the recall of each class on the test images.

    Raises:
        ValueError: A loss or a weight is not finite.
    """
    seed_everything(seed, verbose=False)
    terms = {"task": Term(TaskLoss(), weight=0.5, teacher=None), "kd": Term(KDLoss(temperature=3.0), weight=0.5)}
    learner = OfflineDistiller(
        StudentConvNet(),
        load_teacher(TeacherConvNet(), teacher),
        terms,
        optimizer=lambda p: torch.optim.Adam(p, fused=True),
    )
    callbacks: list[Callback] = [ExactResume(), ChannelsLast(), TeacherCache(cache_dir=cache), FastLoop()]
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        log_every_n_steps=10,  # the steps whose loss is checked
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = MNISTDataModule(seed=seed, val_size=0)
    trainer.fit(learner, data)
    learner.student.eval()
    with torch.no_grad():
        hits = [(learner.student(x).argmax(dim=1) == y, y) for x, y, _ in data.test_dataloader()]
    right, y = (torch.cat(part) for part in zip(*hits, strict=True))
    if not all(value.isfinite().all() for value in learner.student.state_dict().values()):
        raise ValueError("a weight is not finite")
    return [right[y == label].double().mean().item() for label in range(10)]


def main() -> None:
    """Train all seeds, and count failures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", default="packaged:mnist/teacher-0")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Found .* in eval mode")  # the frozen teacher is in eval mode on purpose
    accuracies: list[float] = []
    worst, dead, failed = 1.0, 0, 0
    with TemporaryDirectory() as cache:
        for seed in range(given.seeds):
            try:
                found = recalls(seed, given.teacher, given.epochs, cache)
            except ValueError as error:
                failed += 1
                print(f"seed {seed}: {error}", file=sys.stderr)
                continue
            accuracies.append(mean(found))
            worst, dead = min(worst, *found), dead + (min(found) == 0)
            print(f"seed {seed}: {100 * mean(found):.2f} %, worst class {100 * min(found):.1f} %", file=sys.stderr)
    print(
        f"{given.seeds} seeds of {given.epochs} epochs: {failed} not finite, {dead} with a dead class; mean recall "
        f"{100 * mean(accuracies):.2f} ± {100 * stdev(accuracies):.2f} %, of the worst class {100 * worst:.1f} %"
    )


if __name__ == "__main__":
    main()
