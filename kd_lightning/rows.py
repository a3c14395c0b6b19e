"""Logits of tokens and pixels, made rows: the one place that knows of them, so that no loss does."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kd_lightning.core.errors import UsageError


class Rows(NamedTuple):
    """What a loss on logits sees."""

    student: Tensor
    """(M, C)."""
    teacher: Tensor | None
    """(M, C), or (M, K, C) of K stacked teachers."""
    target: Tensor | None
    """(M,), or (M, C) for probabilities."""


def to_rows(student: Tensor, teacher: Tensor | None, target: Tensor | None, ignore_index: int = -100) -> Rows:
    """Brings logits of tokens (N, L, C) or pixels (N, C, H, W) to rows, without the positions that are ignored.

    What is (N, C) already stays as it is, labels of `ignore_index` included: there they mean an image without a label,
    about which a teacher has something to say.

    Args:
        student: (N, C), (N, L, C) or (N, C, H, W).
        teacher: Of the student's shape, or with K teachers stacked behind N.
        target: Class indices (N,), (N, L) or (N, H, W), or probabilities of the student's shape.
        ignore_index: Class index of a position that counts on neither side.

    Raises:
        UsageError: Positions do not fit each other, or all are ignored.

    Example:
        >>> import torch
        >>> tags = torch.tensor([[1, -100, -100], [0, 2, -100]])
        >>> to_rows(torch.zeros(2, 3, 5), None, tags).student.shape
        torch.Size([3, 5])
    """
    if student.dim() not in (3, 4):
        return Rows(student, teacher, target)
    pixels = student.dim() == 4
    rows = _flat(student, pixels)
    stacked = teacher is not None and teacher.dim() == student.dim() + 1
    shown = None if teacher is None else _flat(teacher, pixels, stacked)
    probabilities = target is not None and target.is_floating_point()
    labels = None if target is None else _flat(target, pixels) if probabilities else target.flatten()
    if {len(part) for part in (rows, shown, labels) if part is not None} != {len(rows)}:
        shapes = [None if part is None else tuple(part.shape) for part in (student, teacher, target)]
        raise UsageError(
            f"student logits {shapes[0]}, teacher logits {shapes[1]} and target {shapes[2]} are not of the same "
            "positions: give both networks the same batch, and each position one label"
        )
    if labels is None or probabilities:
        return Rows(rows, shown, labels)
    kept = labels != ignore_index
    if not kept.any():
        raise UsageError(f"every label of the batch is {ignore_index}, so that no position is left to learn from")
    return Rows(rows[kept], None if shown is None else shown[kept], labels[kept])


def _flat(logits: Tensor, pixels: bool, stacked: bool = False) -> Tensor:
    """Classes, and the teachers before them, moved behind the positions, and these made one dimension."""
    behind = 2 if stacked else 1
    if pixels:  # (N, [K,] C, H, W) -> (N, H, W, [K,] C)
        logits = logits.movedim(tuple(range(1, 1 + behind)), tuple(range(-behind, 0)))
    elif stacked:  # (N, K, L, C) -> (N, L, K, C)
        logits = logits.movedim(1, 2)
    return logits.flatten(0, -1 - behind)
