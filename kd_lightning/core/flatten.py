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
    image, which the teacher's outputs still supervise. There may be no row left.

    Args:
        student: (N, C), (N, L, C) or (N, C, H, W).
        teacher: Of the student's shape, or with K teachers stacked behind N; another width C if only compared by a
            connector.
        target: Class indices or values (N,), (N, L) or (N, H, W), or probabilities or labels of the student's shape.
        ignore_index: Class index of a position that counts on neither side.
        mask: True, or not 0, for the positions that count: (N,), (N, L) or (N, H, W).

    Raises:
        UsageError: Positions do not fit each other.

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
    of_classes = target is not None and (target.shape == student.shape or target.dim() == student.dim())
    labels = None if target is None else _flat(target, pixels) if of_classes else target.flatten()
    counts = None if mask is None else mask.flatten() != 0
    if {len(part) for part in (rows, teacher_rows, labels, counts) if part is not None} != {len(rows)}:
        shapes = [None if part is None else tuple(part.shape) for part in (student, teacher, target)]
        raise UsageError(
            f"student logits {shapes[0]}, teacher logits {shapes[1]} and target {shapes[2]} are not of the same "
            "positions: give both networks the same batch, and each position one label"
            + ("" if mask is None else f" and one value of the mask {tuple(mask.shape)}")
            + ("" if student.dim() != 3 else "; logits (N, C, L) need class_dim=1 in their term")
        )
    if labels is not None and not (of_classes or labels.is_floating_point()) and student.dim() > 2:
        labelled = labels != ignore_index
        counts = labelled if counts is None else counts & labelled
    if counts is None:
        return Positions(rows, teacher_rows, labels)
    return Positions(rows[counts], None if teacher_rows is None else teacher_rows[counts], _at(labels, counts))


def fits_positions(target: Tensor, outputs: Tensor) -> bool:
    """Tell if a target is one whole number for each token (N, L, C) or pixel (N, C, H, W) of outputs.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 3, 5)
        >>> fits_positions(torch.zeros(2, 3).long(), logits), fits_positions(torch.zeros(2).long(), logits)
        (True, False)
    """
    positions = outputs.shape[:1] + outputs.shape[2:] if outputs.dim() == 4 else outputs.shape[:-1]
    return not target.is_floating_point() and target.shape in (positions, (positions.numel(),))


def classes_last(values: Tensor) -> Tensor:
    """Move the classes of sequences (N, C, L), or of K stacked teachers (N, K, C, L), behind the positions."""
    return values.movedim(-2, -1)


def next_positions(
    student: Tensor, teacher: Tensor | None, target: Tensor | None, mask: Tensor | None, shift: int
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Pair the outputs of position t with the label and the mask of position t + shift; without either, all stay.

    Args:
        student: Outputs of tokens (N, L, C).
        teacher: The same, or (N, K, L, C) of K stacked teachers.
        target: Labels of tokens, (N, L) or (N, L, C).
        mask: (N, L).
        shift: The number of positions, at least 1.

    Raises:
        UsageError: These are no tokens.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> student, _, labels, _ = next_positions(torch.zeros(1, 3, 8), None, ids, None, shift=1)
        >>> student.shape, labels
        (torch.Size([1, 2, 8]), tensor([[6, 7]]))
    """
    if student.dim() != 3 or (target is not None and target.dim() < 2) or (mask is not None and mask.dim() != 2):
        shapes = [None if part is None else tuple(part.shape) for part in (student, target, mask)]
        raise UsageError(
            f"shift={shift} moves the labels and the mask of tokens, and outputs are {shapes[0]}, labels {shapes[1]} "
            f"and the mask {shapes[2]}: outputs of tokens are (N, L, C), their labels and mask (N, L)"
        )
    if target is None and mask is None:
        return student, teacher, None, None
    if teacher is not None:
        teacher = teacher[:, :-shift] if teacher.dim() == 3 else teacher[:, :, :-shift]
    later = [None if part is None else part[:, shift:] for part in (target, mask)]
    return student[:, :-shift], teacher, later[0], later[1]


def _at(labels: Tensor | None, counts: Tensor) -> Tensor | None:
    return None if labels is None else labels[counts]


def _flat(logits: Tensor, pixels: bool, stacked: bool = False) -> Tensor:
    """Move classes, and stacked teachers before them, behind the positions, and flatten the positions."""
    if logits.dim() == 1:  # one output a sample
        return logits
    behind = 2 if stacked else 1
    if pixels:  # (N, [K,] C, H, W) -> (N, H, W, [K,] C)
        logits = logits.movedim(tuple(range(1, 1 + behind)), tuple(range(-behind, 0)))
    elif stacked and logits.dim() > 3:  # (N, K, L, C) -> (N, L, K, C)
        logits = logits.movedim(1, 2)
    return logits.flatten(0, -1 - behind)
