"""Faults of the first batch on two processes: both end with the same line; run as a program, this file is one rank."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning import OfflineDistiller, Term, UsageError
from kd_lightning.losses import KDLoss, RKDLoss
from tests import toys
from tests.callbacks import drop_in
from tests.ranks import run_two, two_processes

pytestmark = two_processes


def loader(samples: int = 16, batch_size: int = 2, **changes: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, drop_in.FEATURES, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(samples) % drop_in.CLASSES), batch_size=batch_size, **changes)


def student(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(drop_in.FEATURES, 8), *layers, nn.Linear(8, drop_in.CLASSES))


def learner(student: nn.Module, term: Term, teacher: nn.Module) -> tuple[LightningModule, list[Any]]:
    return OfflineDistiller(student, teacher, {"t": term}), []


def host(student: nn.Module, term: Term, teacher: nn.Module) -> tuple[LightningModule, list[Any]]:
    module = drop_in.Theirs()
    module.backbone = student
    return module, [drop_in.distillation(terms={"t": term}, teacher=teacher)]


def relations() -> Term:
    return Term(RKDLoss(), student="0", teacher="0")


WAYS = {"learner": learner, "drop-in": host}
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Term], Callable[[], nn.Module], Any, str]] = {
    # five samples for each of two processes: a last batch of one on each
    "one sample": (
        lambda: student(nn.BatchNorm1d(8)),
        lambda: Term(KDLoss(3.0)),
        drop_in.teacher,
        loader(10),
        "1 sample",
    ),
    "two samples": (student, relations, drop_in.teacher, loader(10), ""),
    "no sample": (student, relations, drop_in.teacher, loader(2, 4, drop_last=True), "loader is empty"),
    "eval": (lambda: student(nn.Dropout()).eval(), relations, drop_in.teacher, loader(), "in eval mode"),
    "probabilities": (
        student,
        lambda: Term(KDLoss(3.0)),
        lambda: nn.Sequential(drop_in.teacher(), nn.Softmax(dim=1)),
        loader(),
        "are probabilities",
    ),
    "teacher not finite": (
        student,
        lambda: Term(KDLoss(3.0)),
        lambda: nn.Sequential(drop_in.teacher(), nn.Threshold(10.0, float("inf"))),
        loader(),
        "not finite in the first batch",
    ),
    "cannot teach": (
        lambda: student().requires_grad_(False).append(nn.Linear(drop_in.CLASSES, drop_in.CLASSES)),
        relations,
        drop_in.teacher,
        loader(),
        "cannot teach the student",
    ),
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    out = tmp_path_factory.mktemp("first batch")
    run_two("tests.core.test_first_batch_processes", out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_both_processes_end_with_the_line_of_the_fault(name, way, lines):
    first, second = (of_rank[f"{name}, {way}"] for of_rank in lines)
    assert first == second
    assert CASES[name][-1] in first
    assert bool(CASES[name][-1]) == bool(first)


def main(out: Path) -> None:
    found: dict[str, str] = {}
    for name, (student, term, teacher, data, _) in CASES.items():
        for way, build in WAYS.items():
            module, callbacks = build(student(), term(), teacher())
            ddp = {"strategy": "ddp_find_unused_parameters_true", "devices": 2, "accelerator": "cpu"}
            trainer = toys.trainer(out, *callbacks, max_epochs=1, **ddp)
            found[f"{name}, {way}"] = ""
            try:
                trainer.fit(module, data)
            except UsageError as error:
                found[f"{name}, {way}"] = str(error)
    (out / f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
