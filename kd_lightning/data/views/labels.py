"""LabelTable: labels that can hold together, or real values, in place of class indices."""

from __future__ import annotations

import math
from typing import Any

import torch

from kd_lightning.core.errors import UsageError
from kd_lightning.data.loaders import ImageBatch
from kd_lightning.data.views.base import BatchViews, Part


class LabelTable(BatchViews):
    """Images with the labels of their class from a table, such as attributes of digits for `BinaryTaskLoss`.

    A batch is a mapping of ``image``, ``target`` (N, D) and ``index``.

    Args:
        table: One row of D numbers a class: labels of 0 and 1 that can hold together, or real values.

    Raises:
        UsageError: The rows differ in length, or a number is not finite; at a batch: a class has no row.

    Example:
        >>> from kd_lightning.data import MNIST, ResidentDataModule
        >>> even_and_above_four = [[1 - digit % 2, digit // 5] for digit in range(10)]
        >>> data = ResidentDataModule(MNIST(), views=LabelTable(even_and_above_four))
        >>> next(iter(data.test_dataloader()))["target"][:3].tolist()  # 7, 2, 1
        [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, table: list[list[float]]) -> None:
        lengths = sorted({len(row) for row in table})
        if len(lengths) != 1 or not lengths[0] or not all(math.isfinite(value) for row in table for value in row):
            raise UsageError(
                f"table has {len(table)} rows of {' and '.join(map(str, lengths)) or 'no'} numbers: give each class a "
                "row of the same number of finite numbers"
            )
        self.table = torch.tensor(table, dtype=torch.float32)
        self._is_checked = False

    def __call__(self, batch: ImageBatch, part: Part) -> dict[str, Any]:
        """Return the images, the rows of their classes and their numbers."""
        x, y, index = batch
        if not self._is_checked:
            classes = int(part.data.labels.max()) + 1
            if classes > len(self.table):
                raise UsageError(
                    f"table has {len(self.table)} rows and the data {classes} classes: give each class a row"
                )
            self.table, self._is_checked = self.table.to(y.device), True
        return {"image": x, "target": self.table[y], "index": index}
