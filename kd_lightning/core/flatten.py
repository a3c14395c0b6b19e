"""Tokens and pixels as rows: losses and metrics receive (M, C) and need no code for either."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kd_lightning.core.errors import UsageError


class Positions(NamedTuple):
    """Student, teacher and target of the positions that count, one a row."""

    student: Tensor
    """(M, C)."""
    teacher: Tensor | None
    """(M, C), or (M, K, C) of K stacked teachers."""
    target: Tensor | None
    """(M,), or (M, C) for probabilities."""


def flatten_positions(
    student: Tensor,
    teacher: Tensor | None,
    target: Tensor | None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
) -> Positions:
    """Make rows of tokens (N, L, C) or pixels (N, C, H, W), without the positions that are ignored or masked out.

    Logits or features (N, C) are returned unchanged unless there is a mask: `ignore_index` then marks an unlabeled
    image, which the teacher's outputs still supervise.

    Args:
        student: (N, C), (N, L, C) or (N, C, H, W).
        teacher: Of the student's shape, or with K teachers stacked behind N; another width C if only compared by a
            connector.
        target: Class indices (N,), (N, L) or (N, H, W), or probabilities of the student's shape.
        ignore_index: Class index of a position that counts on neither side.
        mask: True, or not 0, for the positions that count: (N,), (N, L) or (N, H, W).

    Raises:
        UsageError: Positions do not fit each other, or none is left.

    Example:
        >>> import torch
        >>> tags = torch.tensor([[1, -100, -100], [0, 2, -100]])
        >>> flatten_positions(torch.zeros(2, 3, 5), None, tags).student.shape
        torch.Size([3, 5])
        >>> flatten_positions(torch.zeros(2, 3, 5), None, None, mask=torch.tensor([[1, 1, 0], [1, 0, 0]])).student.shape
        torch.Size([3, 5])
    """
    if student.dim() not in (3, 4) and mask is None:
        return Positions(student, teacher, target)
    pixels = student.dim() == 4
    rows = _flat(student, pixels)
    stacked = teacher is not None and teacher.dim() == student.dim() + 1
    teacher_rows = None if teacher is None else _flat(teacher, pixels, stacked)
    probabilities = target is not None and target.is_floating_point()
    labels = None if target is None else _flat(target, pixels) if probabilities else target.flatten()
    counts = None if mask is None else mask.flatten() != 0
    if {len(part) for part in (rows, teacher_rows, labels, counts) if part is not None} != {len(rows)}:
        shapes = [None if part is None else tuple(part.shape) for part in (student, teacher, target)]
        raise UsageError(
            f"student logits {shapes[0]}, teacher logits {shapes[1]} and target {shapes[2]} are not of the same "
            "positions: give both networks the same batch, and each position one label"
            + ("" if mask is None else f" and one value of the mask {tuple(mask.shape)}")
        )
    if labels is not None and not probabilities and student.dim() > 2:
        labelled = labels != ignore_index
        if not labelled.any():
            raise UsageError(f"every label of the batch is {ignore_index}, so that no position is left to learn from")
        counts = labelled if counts is None else counts & labelled
    if counts is None:
        return Positions(rows, teacher_rows, labels)
    if not counts.any():
        raise UsageError("the mask of the batch leaves no position to learn from: check which values it has")
    return Positions(rows[counts], None if teacher_rows is None else teacher_rows[counts], _at(labels, counts))


def _at(labels: Tensor | None, counts: Tensor) -> Tensor | None:
    return None if labels is None else labels[counts]


def _flat(logits: Tensor, pixels: bool, stacked: bool = False) -> Tensor:
    """Move classes, and stacked teachers before them, behind the positions, and flatten the positions."""
    behind = 2 if stacked else 1
    if pixels:  # (N, [K,] C, H, W) -> (N, H, W, [K,] C)
        logits = logits.movedim(tuple(range(1, 1 + behind)), tuple(range(-behind, 0)))
    elif stacked and logits.dim() > 3:  # (N, K, L, C) -> (N, L, K, C)
        logits = logits.movedim(1, 2)
    return logits.flatten(0, -1 - behind)
