"""Draws docs/attention.png: attention maps of a teacher, a student alone, and a student with attention transfer.

python -m benchmarks.attention [--runs runs/compare/attention]        (needs: make families)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.zoo import ROOT
from kd_lightning import OfflineDistiller, Term, load_student, load_teacher
from kd_lightning.callbacks import AttentionMapsLogger
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import AttentionTransferLoss
from kd_lightning.networks import StudentConvNet, TeacherConvNet

LAYERS = ["conv.1", "conv.3", "conv.5"]


def main() -> None:
    """Draw the maps of the first test images: the teacher's beside each student's."""
    from torchvision.io import write_png  # here, because its import takes seconds

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs/compare/attention", help="the folder of the comparison"
    )
    runs = parser.parse_args().runs
    batch = next(iter(MNISTDataModule().test_dataloader()))
    drawn: list[Tensor] = []
    for name in ("alone", "attention-transfer"):
        teacher = load_teacher(TeacherConvNet(), runs / "teachers/teacher/seed-0/last.ckpt")
        student = load_student(runs / "input" / name / "seed-0/last.ckpt", StudentConvNet()).eval()
        at = Term(AttentionTransferLoss(), student="conv.3", teacher="conv.3")
        learner = OfflineDistiller(student, teacher, {"at": at})
        drawn.append(AttentionMapsLogger(LAYERS, LAYERS).draw(learner, batch))
    gap = torch.ones(3, 8, drawn[0].shape[2])
    write_png((torch.cat([drawn[0], gap, drawn[1]], dim=1) * 255).byte(), str(ROOT / "docs/attention.png"))


if __name__ == "__main__":
    main()
