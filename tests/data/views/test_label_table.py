from __future__ import annotations

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import MNIST, LabelTable, MNISTDataModule, ResidentDataModule

TABLE = [[float(digit % 2), digit / 3] for digit in range(10)]


def data(table: list[list[float]]) -> ResidentDataModule:
    given = {"num_channels": 3, "batch_size": 16, "train_size": 64, "val_size": 32}
    return ResidentDataModule(MNIST(), views=LabelTable(table), **given)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_targets_are_the_rows_of_the_digits(loader: str):
    seen = next(iter(getattr(data(TABLE), loader)()))
    x, y, index = next(iter(getattr(MNISTDataModule(batch_size=16, train_size=64, val_size=32), loader)()))
    assert torch.equal(seen["image"], x)
    assert torch.equal(seen["index"], index)
    assert torch.equal(seen["target"], torch.tensor([TABLE[digit] for digit in y.tolist()]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "table has 0 rows of no numbers"),
        ([[]], "table has 1 rows of 0 numbers"),
        ([[1.0], [1.0, 0.0]], "table has 2 rows of 1 and 2 numbers: give each class a row"),
        ([[1.0], [float("nan")]], "finite"),
    ],
)
def test_a_table_that_is_none_is_refused(table, message):
    with pytest.raises(UsageError, match=message):
        LabelTable(table)


def test_a_table_without_a_row_for_each_class_is_refused():
    with pytest.raises(UsageError, match="table has 3 rows and the data 10 classes: give each class a row"):
        next(iter(data(TABLE[:3]).train_dataloader()))
