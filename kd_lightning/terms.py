"""A term: a loss, addressed."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.distributed import gather, share
from kd_lightning.losses.checks import WidthError
from kd_lightning.rows import to_rows
from kd_lightning.taps import Activations

Address = str | list[str]
"""One name, or several, whose tensors reach the loss as a list."""
Picked = Tensor | list[Tensor | None] | None
"""What an address finds; a label that the batch lacks is None."""


class Term(nn.Module):
    """A loss with addresses and a weight: what it compares, where, and how much that counts.

    A term returns its loss *unweighted*; whoever sums the terms multiplies by `weight`, which a callback may move.
    A loss that compares samples with each other (``loss.compares_samples``) is given the batch of all ranks. Logits of
    tokens (N, L, C) or pixels (N, C, H, W) reach the loss as rows (M, C), labels alike, without ignored positions.

    Args:
        loss: Called as ``loss(student, teacher, target)``; its parameters (connectors, learned scales) train along.
        weight: Coefficient in the sum; finite.
        student: The student's layer(s); ``"logits"`` and ``"input"`` as in `kd_lightning.taps.watch`. None for a loss
            of the teacher alone, which is given the teacher's in its place: what makes an input one that it knows.
        teacher: The teacher's layer(s); None for a loss that has no teacher, such as the task loss.
        target: The label(s) of the batch; a label that the batch lacks is passed as None.
        ignore_index: Label of tokens or pixels that are left out, on both sides.

    Raises:
        UsageError: `weight` is not finite, neither side is addressed, an addressed layer was not seen, or a loss that
            needs labels lacks one.

    Example:
        >>> import torch
        >>> from kd_lightning.losses import TaskLoss
        >>> term = Term(TaskLoss(), weight=0.1, teacher=None)
        >>> term({"logits": torch.zeros(2, 10)}, None, {"target": torch.tensor([3, 7])})
        tensor(2.3026)
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        student: Address | None = "logits",
        teacher: Address | None = "logits",
        target: Address | None = "target",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if not math.isfinite(weight):
            raise UsageError(f"weight={weight} of a {type(loss).__name__} term is not a finite number")
        if student is None and teacher is None:
            raise UsageError(f"a {type(loss).__name__} term looks at nothing: set its student or its teacher")
        self.loss = loss
        self.weight = weight
        self.student = student
        self.teacher = teacher
        self.target = target
        self.ignore_index = ignore_index

    def forward(
        self,
        student: Activations,
        teacher: Activations | None,
        labels: dict[str, Tensor],
        measure: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """The loss, unweighted, of the activations and labels that this term addresses; or `measure` of the same."""
        loss, address = self.loss, self.student
        if teacher is None and self.teacher is not None:
            raise UsageError(f"a {type(loss).__name__} term compares with a teacher and there is none: teacher=None")
        try:
            seen: Picked = student[address] if isinstance(address, str) else _pick(student, address)
            shown = None if self.teacher is None else _pick(teacher or {}, self.teacher)
            if address is None:
                seen, shown = shown, None
        except KeyError:
            raise self._not_seen(student, teacher or {}) from None
        target = self.target
        label = labels[target] if isinstance(target, str) and target in labels else self._label(loss, labels)
        if compares_samples := getattr(loss, "compares_samples", False):
            seen, shown, label = _whole(seen), _whole(shown), _whole(label)
        if address != "logits" or not isinstance(seen, Tensor) or seen.dim() < 3:
            try:
                return loss(seen, shown, label) if measure is None else measure(seen, shown, label)
            except WidthError as error:
                raise self._width(error) from error
        rows = to_rows(
            seen,
            shown if isinstance(shown, Tensor) else None,
            label if isinstance(label, Tensor) else None,
            self.ignore_index,
        )
        value: Tensor = (measure or loss)(*rows)
        return value if compares_samples else value * share(len(rows.student))

    def _label(self, loss: nn.Module, labels: dict[str, Tensor]) -> Picked:
        """What the batch has of the labels; an error if the loss needs one that it lacks."""
        address = self.target
        if getattr(loss, "needs_target", False):
            missing = [name for name in names(address) or [None] if name not in labels]
            if missing:
                raise UsageError(
                    f"{type(loss).__name__} needs the label {missing[0]!r}; "
                    f"this batch has {', '.join(labels) or 'no labels'}: set the term's target"
                )
        return [labels.get(name) for name in address] if isinstance(address, list) else None

    def _not_seen(self, student: Activations, teacher: Activations) -> UsageError:
        for side, seen, address in (("student", student, self.student), ("teacher", teacher, self.teacher)):
            for layer in names(address):
                if layer not in seen:
                    return UsageError(
                        f"a {type(self.loss).__name__} term compares the {side}'s {layer!r}, "
                        f"and only {', '.join(seen)} was seen: set the term's {side}"
                    )
        raise AssertionError("every layer was seen")

    def _width(self, error: WidthError) -> UsageError:
        layer = names(self.student if error.side == "student" else self.teacher)[error.layer]
        return UsageError(
            f"the {error.side}'s {layer} gives {error.channels} channels, {type(self.loss).__name__} was built "
            f"for {error.expected}: change its {error.side}_channels, or the layer (kd-lightning layers "
            "--config FILE shows them all)"
        )


def _pick(seen: Activations, address: Address | None) -> Picked:
    if isinstance(address, str):
        return seen[address]
    return None if address is None else [seen[layer] for layer in address]


def _whole(value: Picked) -> Picked:
    """Of all ranks."""
    if isinstance(value, list):
        return [None if part is None else gather(part) for part in value]
    return None if value is None else gather(value)


def names(address: Address | None) -> list[str]:
    """The names in an address."""
    return [] if address is None else [address] if isinstance(address, str) else address


def check_terms(terms: dict[str, Term]) -> dict[str, Term]:
    """Returns `terms`; a ValueError unless there are some, and each can be called what it is."""
    if not terms:
        raise UsageError("terms is empty: give at least one, e.g. terms={'task': Term(TaskLoss(), teacher=None)}")
    taken = nn.ModuleDict()
    for name in terms:
        if not name or "." in name or hasattr(taken, name):
            raise UsageError(f"a term cannot be called {name!r}: avoid dots and the names of dict and module methods")
    return terms
