"""Term: one loss, addressed and weighted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kd_lightning.core.activations import Activations
from kd_lightning.core.arguments import is_finite_number
from kd_lightning.core.distributed import (
    all_gather_with_grad,
    is_distributed,
    of_whole_batch,
    rank_weight,
    rank_weight_of,
)
from kd_lightning.core.errors import UsageError, WidthError
from kd_lightning.core.flatten import Positions, classes_last, fits_positions, flatten_positions, next_positions
from kd_lightning.core.loss import UNLABELED, loss_trait
from kd_lightning.core.zero_gradient import with_zero_gradient

Address = str | list[str]
"""One name, or several, whose tensors reach the loss as a list."""
Picked = Tensor | list[Tensor | None] | None
"""The tensors at an address; a label that the batch lacks is None."""
Side = Literal["student", "teacher"]
_SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


class Term(nn.Module):
    """A loss with addresses and a weight: the layers and labels that it compares, and its coefficient.

    A term returns its loss *unweighted*; the sum over terms multiplies by `weight`, which a callback may change. A loss
    that compares samples (``loss.compares_samples``) gets the batch of all ranks. Logits of tokens (N, L, C) or pixels
    (N, C, H, W) reach the loss as rows (M, C), labels alike, without ignored positions, unless it compares maps
    (``loss.takes_maps``). A label that the loss does not need tells the ignored positions where it fits these, and is
    passed over elsewhere. Where no row is left the loss is 0, with a gradient of 0.

    Args:
        loss: Called as ``loss(student, teacher, target)``; its parameters (connectors, learned scales) are trained too.
        weight: Coefficient in the sum; finite.
        student: The student's layer(s), as for `kd_lightning.record_activations`. None for a loss of the teacher alone,
            which gets the teacher's layer(s) as its first argument.
        teacher: The teacher's layer(s); None for a loss without a teacher, such as the task loss.
        target: The label(s) of the batch. ``"target"`` is the batch's label, be it called target, label or labels;
            ``input.<name>`` is an input of the network. One that the batch lacks is passed as None.
        ignore_index: Label of tokens or pixels that count on neither side.
        mask: Name of a tensor of the batch that is True, or not 0, at the samples (N,), tokens (N, L) or pixels
            (N, H, W) that count, such as ``attention_mask``; features become rows then as logits do.
        shift: Position t is compared with the label, and counts by the mask, of position t + `shift`: 1 for a causal
            language model whose labels are its inputs. Evaluation follows the task loss's term.
        class_dim: Dimension of the classes in outputs of sequences: -1 for (N, L, C), which is the default, or 1 for
            (N, C, L), as ``nn.Conv1d`` gives them.

    Raises:
        UsageError: `loss` is no module, a term, or takes other arguments; `weight` is not finite, neither side is
            addressed, or `shift` is negative; at a call: an addressed layer was not recorded, or a label that the loss
            needs, or the mask, is missing.

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
        mask: str | None = None,
        shift: int = 0,
        class_dim: Literal[1, -1] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module) or isinstance(loss, Term):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"the loss of a term is a {type(loss).__name__}: give the loss itself, e.g. Term(KDLoss(4.0))"
            )
        _check_signature(loss)
        if not is_finite_number(weight):
            raise UsageError(f"weight={weight!r} of a {type(loss).__name__} term is not a finite number")
        if student is None and teacher is None:
            raise UsageError(f"a {type(loss).__name__} term has no layer to compare: set its student or its teacher")
        if shift < 0:
            raise UsageError(f"shift={shift} of a {type(loss).__name__} term is negative: 1 is the next token")
        if class_dim not in (None, 1, -1):
            raise UsageError(
                f"class_dim={class_dim} of a {type(loss).__name__} term must be 1, for (N, C, L), or -1, for (N, L, C)"
            )
        self.loss = loss
        self.weight = weight
        self.student = student
        self.teacher = teacher
        self.target = target
        self.ignore_index = ignore_index
        self.mask = mask
        self.shift = shift
        self.class_dim = class_dim
        self.weighs_labels = False

    def start(self) -> None:
        """Find out, for the steps that follow, if other processes may have other numbers of labeled samples."""
        self.weighs_labels = self._skips_unlabeled() and is_distributed()

    def forward(
        self,
        student: Activations,
        teacher: Activations | None,
        labels: dict[str, Tensor],
        measure: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Return the loss, unweighted, of the addressed activations and labels; or `measure` of the same.

        A term of weight 0 returns the loss's value with a gradient of zero, without differentiating the loss.
        """
        if not self.weight and measure is None and torch.is_grad_enabled():
            with torch.no_grad():
                value = self(student, teacher, labels)
            return self.idle(student, value)
        loss, address = self.loss, self.student
        if teacher is None and self.teacher is not None:
            raise UsageError(f"a {type(loss).__name__} term compares with a teacher and there is none: teacher=None")
        try:
            first: Picked = student[address] if isinstance(address, str) else _pick(student, address)
            second = None if self.teacher is None else _pick(teacher or {}, self.teacher)
            if address is None:
                first, second = second, None
        except KeyError:
            raise self._not_recorded(student, teacher or {}) from None
        target = self.target
        label = labels[target] if isinstance(target, str) and target in labels else self._label(loss, labels)
        if isinstance(label, Tensor) and label.dtype in _SMALL_INTEGERS:
            label = label.long()
        mask = None if self.mask is None else self._mask(labels)
        if compares_samples := getattr(loss, "compares_samples", False):  # by name: a function would be a call a step
            first, second, label, mask = _gather(first), _gather(second), _gather(label), _gather(mask)
        call = loss if measure is None else measure
        if compares_samples:
            call = partial(of_whole_batch, call)
        if not isinstance(first, Tensor) or not (mask is not None or (first.dim() > 2 and self.makes_rows())):
            if self.shift:
                raise self._no_tokens(first)
            if self.ignore_index != UNLABELED:
                label = self._with_unlabeled(label)
            try:
                value = call(first, second, label)
            except WidthError as error:
                raise self._width(error) from error
            if self.weighs_labels and isinstance(label, Tensor) and not label.is_floating_point():
                value = value * rank_weight_of((label != UNLABELED).sum())
            return value
        rows = self._rows(first, second, label, cast("Tensor | None", mask))
        if not len(rows.student):
            value = self.idle(student, torch.zeros((), device=rows.student.device))
        else:
            value = call(*rows)
        return value if compares_samples else value * rank_weight(len(rows.student))

    def _rows(self, first: Tensor, second: Picked, label: Picked, mask: Tensor | None) -> Positions:
        """Return the positions that count as rows."""
        second = second if isinstance(second, Tensor) else None
        target = label if isinstance(label, Tensor) else None
        if self.class_dim == 1 and first.dim() == 3:
            if target is not None and target.shape == first.shape:
                target = classes_last(target)
            first, second = classes_last(first), None if second is None else classes_last(second)
        if target is not None and not loss_trait(self.loss, "needs_target"):
            target = target if self.makes_rows() and fits_positions(target, first) else None
        if self.shift:
            first, second, target, mask = next_positions(first, second, target, mask, self.shift)
        return flatten_positions(first, second, target, self.ignore_index, mask)

    def _with_unlabeled(self, label: Picked) -> Picked:
        """Return the class indices of samples with the losses' own index for the ignored ones."""
        if self._skips_unlabeled() and isinstance(label, Tensor) and not label.is_floating_point():
            return label.long().masked_fill(label == self.ignore_index, UNLABELED)
        return label

    def _skips_unlabeled(self) -> bool:
        kind = loss_trait(self.loss, "label_kind")
        return kind in ("classes", "multilabel") or loss_trait(self.loss, "skips_unlabeled")

    def idle(self, student: Activations, value: Tensor) -> Tensor:
        """Return a value with a zero gradient for every tensor that the loss could have a gradient for.

        Every process then finds a gradient for every parameter, whatever the loss is.
        """
        picked = [student[layer] for layer in names(self.student) if layer in student]
        return with_zero_gradient(value, [part for part in (*picked, *self.parameters()) if part.requires_grad])

    def makes_rows(self) -> bool:
        """True where tokens and pixels become rows, of one layer without a mask."""
        takes_rows: bool | None = loss_trait(self.loss, "takes_rows")
        return (self.student == "logits" if takes_rows is None else takes_rows) and not loss_trait(
            self.loss, "takes_maps"
        )

    def _label(self, loss: nn.Module, labels: dict[str, Tensor]) -> Picked:
        """The labels that the batch has; an error if the loss needs one that it lacks."""
        address = self.target
        if loss_trait(loss, "needs_target"):
            missing = [name for name in names(address) or [None] if name not in labels]
            if missing:
                raise UsageError(
                    f"{type(loss).__name__} needs the label {missing[0]!r}; "
                    f"this batch has {', '.join(labels) or 'no labels'}: set the term's target"
                )
        return [labels.get(name) for name in address] if isinstance(address, list) else None

    def _mask(self, labels: dict[str, Tensor]) -> Tensor:
        if self.mask not in labels:
            raise UsageError(
                f"mask={self.mask!r} of a {type(self.loss).__name__} term is not in the batch, which has "
                f"{', '.join(labels) or 'no names'}: name a tensor of the batch"
            )
        return labels[self.mask]

    def _no_tokens(self, first: Picked) -> UsageError:
        found = tuple(first.shape) if isinstance(first, Tensor) else "several layers"
        return UsageError(
            f"shift={self.shift} of a {type(self.loss).__name__} term moves the labels and the mask of tokens, and the "
            f"student gave {found}: shift logits (N, L, C), or a layer of tokens with a mask"
        )

    def _not_recorded(self, student: Activations, teacher: Activations) -> UsageError:
        for side, recorded, address in (("student", student, self.student), ("teacher", teacher, self.teacher)):
            for layer in names(address):
                if layer not in recorded:
                    return UsageError(
                        f"a {type(self.loss).__name__} term compares the {side}'s {layer!r}, and only "
                        f"{', '.join(recorded) or 'nothing'} was recorded: set the term's {side}"
                    )
        raise AssertionError("every layer was recorded")

    def _width(self, error: WidthError) -> UsageError:
        layer = names(self.student if error.side == "student" else self.teacher)[error.layer]
        return UsageError(
            f"the {error.side}'s {layer} gives {error.channels} channels, {type(self.loss).__name__} was built "
            f"for {error.expected}: change its {error.side}_channels, or the layer (kd-lightning layers "
            "--config FILE shows them all)"
        )


def _check_signature(loss: nn.Module) -> None:
    """Check that a loss can be called as ``loss(student, teacher, target)``, as far as Python tells."""
    try:
        signature = inspect.signature(loss.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise UsageError(
            f"the loss of a term is called as loss(student, teacher, target), and {type(loss).__name__}.forward takes "
            f"({', '.join(signature.parameters)}): wrap it in a module whose forward takes these three"
        ) from None


def _pick(recorded: Activations, address: Address | None) -> Picked:
    if isinstance(address, str):
        return recorded[address]
    return None if address is None else [recorded[layer] for layer in address]


def _gather(value: Picked) -> Picked:
    """The rows of all ranks."""
    if isinstance(value, list):
        return [None if part is None else all_gather_with_grad(part) for part in value]
    return None if value is None else all_gather_with_grad(value)


def names(address: Address | None) -> list[str]:
    """List the names in an address."""
    return [] if address is None else [address] if isinstance(address, str) else address
