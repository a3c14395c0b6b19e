"""Terms: losses that are addressed, weighted and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from kd_lightning.core.activations import Activations
from kd_lightning.core.distributed import all_gather_with_grad, rank_weight
from kd_lightning.core.errors import UsageError, WidthError
from kd_lightning.core.flatten import flatten_positions
from kd_lightning.core.loss import loss_trait

Address = str | list[str]
"""One name, or several, whose tensors reach the loss as a list."""
Picked = Tensor | list[Tensor | None] | None
"""The tensors at an address; a label that the batch lacks is None."""
Side = Literal["student", "teacher"]


class Term(nn.Module):
    """A loss with addresses and a weight: what is compared, where it is found, and how much it counts.

    A term returns its loss *unweighted*; the sum over terms multiplies by `weight`, which a callback may change. A loss
    that compares samples (``loss.compares_samples``) gets the batch of all ranks. Logits of tokens (N, L, C) or pixels
    (N, C, H, W) reach the loss as rows (M, C), labels alike, without ignored positions, unless it compares maps
    (``loss.takes_maps``).

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

    Raises:
        UsageError: `weight` is not finite, or neither side is addressed; at a call: an addressed layer was not
            recorded, or a label that the loss needs, or the mask, is missing.

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
    ) -> None:
        super().__init__()
        if not math.isfinite(weight):
            raise UsageError(f"weight={weight} of a {type(loss).__name__} term is not a finite number")
        if student is None and teacher is None:
            raise UsageError(f"a {type(loss).__name__} term has no layer to compare: set its student or its teacher")
        self.loss = loss
        self.weight = weight
        self.student = student
        self.teacher = teacher
        self.target = target
        self.ignore_index = ignore_index
        self.mask = mask

    def forward(
        self,
        student: Activations,
        teacher: Activations | None,
        labels: dict[str, Tensor],
        measure: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Return the loss, unweighted, of the addressed activations and labels; or `measure` of the same.

        Of a term of weight 0 it has the loss's value, and a gradient of zero that is not computed by the loss.
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
        mask = None if self.mask is None else self._mask(labels)
        if compares_samples := getattr(loss, "compares_samples", False):  # by name: a function would be a call a step
            first, second, label, mask = _gather(first), _gather(second), _gather(label), _gather(mask)
        call = loss if measure is None else measure
        if not isinstance(first, Tensor) or not (mask is not None or (first.dim() > 2 and self._makes_rows())):
            try:
                return call(first, second, label)
            except WidthError as error:
                raise self._width(error) from error
        of_positions = isinstance(label, Tensor) and (self._makes_rows() or loss_trait(loss, "needs_target"))
        rows = flatten_positions(
            first,
            second if isinstance(second, Tensor) else None,
            cast("Tensor", label) if of_positions else None,
            self.ignore_index,
            cast("Tensor | None", mask),
        )
        value = call(*rows)
        return value if compares_samples else value * rank_weight(len(rows.student))

    def idle(self, student: Activations, value: Tensor) -> Tensor:
        """Return a value whose gradient is zero in all that the loss would have sent one to.

        Every process then finds a gradient for every parameter, whatever the loss is.
        """
        picked = [student[layer] for layer in names(self.student) if layer in student]
        tensors = [tensor for tensor in (*picked, *self.parameters()) if tensor.requires_grad]
        return cast("Tensor", _ZeroGradient.apply(value, *tensors)) if tensors else value

    def _makes_rows(self) -> bool:
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


class Terms(nn.ModuleDict):
    """The terms of a scheme by name: which layers they need, their losses, and the weighted sum.

    A loss of weight 0 is not part of the sum; at steps without logging it is not computed either.

    Args:
        terms: The terms by name.

    Raises:
        UsageError: There are no terms, or a name cannot be one.

    Example:
        >>> import torch
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> terms = Terms({"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(4.0), weight=0.5)})
        >>> terms.layers("teacher"), terms.labels()
        (['logits'], ['target'])
        >>> logits, target = torch.zeros(2, 10, requires_grad=True), torch.tensor([3, 7])
        >>> losses = terms.losses({"logits": logits}, {"logits": logits.detach()}, {"target": target})
        >>> round(terms.weighted_sum(losses).item(), 4)
        2.3026
    """

    skip_unweighted = False
    """Losses of weight 0 are not computed: a learner sets it at the steps that are not logged."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise UsageError("terms is empty: give at least one, e.g. terms={'task': Term(TaskLoss(), teacher=None)}")
        for name, term in terms.items():
            if not name or "." in name or hasattr(self, name):
                raise UsageError(
                    f"a term cannot be called {name!r}: avoid dots and the names of dict and module methods"
                )
            self[name] = term
        self.is_checked = False

    def all(self) -> dict[str, Term]:
        """The terms by name, as a plain dict."""
        terms: Any = self._modules  # here and below, for `items` and `cast` would be calls of every step
        return terms

    def layers(self, side: Side) -> list[str]:
        """List the layers that the terms address on one side."""
        terms: Any = self._modules
        found: dict[str, None] = {}
        for term in terms.values():
            address = term.student if side == "student" else term.teacher
            # the student's are recorded even so: they get a gradient of zero
            if address is not None and (side == "student" or term.weight or not self.skip_unweighted):
                found |= dict.fromkeys((address,) if isinstance(address, str) else address)
        return list(found)

    def labels(self) -> list[str]:
        """List the labels and masks that the terms address in a batch."""
        found: dict[str, None] = {}
        for term in self.all().values():
            found |= dict.fromkeys(names(term.target))
            if term.mask is not None:
                found[term.mask] = None
        return list(found)

    def losses(
        self,
        student: Activations,
        teacher: Activations | None,
        labels: dict[str, Tensor],
        only: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the unweighted loss of each term, of the same activations.

        In the first call of a fit each weighted term is checked: its loss is a scalar, and one of the student's
        activations that it compares requires a gradient.

        Args:
            student: The student's activations.
            teacher: The teacher's, or None.
            labels: The labels of the batch.
            only: The names of some of the terms; all of them if not given.

        Raises:
            UsageError: As for `Term`; or a weighted term cannot teach the student.
        """
        terms: Any = self._modules
        found: dict[str, Tensor] = {}
        for name in terms if only is None else only:
            term = terms[name]
            if term.weight or not self.skip_unweighted:
                found[name] = term(student, teacher, labels)
            else:
                found[name] = term.idle(student, torch.zeros((), device=next(iter(student.values())).device))
        if not self.is_checked and torch.is_grad_enabled():
            for name, loss in found.items():
                if terms[name].weight:
                    check_can_teach(name, terms[name], student, loss)
            vars(self)["is_checked"] = True
        return found

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum losses under the weights of their terms; a loss of weight 0 adds its graph and not its value."""
        terms: Any = self._modules
        total: Tensor | None = None
        for name, loss in losses.items():
            weight = terms[name].weight
            weighted = weight * loss if weight else cast("Tensor", _Nothing.apply(loss))
            total = weighted if total is None else total + weighted
        assert total is not None
        return total

    def log_values(self, losses: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what is logged of a step: ``train/<term>`` of each loss, and ``temperature/<term>``."""
        values: dict[str, Any] = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        for name, term in self.all().items():
            if hasattr(term.loss, "temperature"):
                values[f"temperature/{name}"] = term.loss.temperature
        return values


class _ZeroGradient(torch.autograd.Function):
    """A value, with a gradient of zero for tensors that it was not computed from."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


class _Nothing(torch.autograd.Function):
    """Zero, with a gradient of zero, whatever the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.zeros_like(gradients[0])


def check_can_teach(name: str, term: Term, student: Activations, loss: Any) -> None:
    """Check that a loss is a scalar that the student can learn from.

    Raises:
        UsageError: It is not, with the term and the layer.
    """
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(
            f"term {name!r}: {type(term.loss).__name__} gave {found}, not a scalar: let its forward average over the "
            "batch"
        )
    layers = names(term.student)
    if layers and not any(student[layer].requires_grad for layer in layers):
        raise UsageError(
            f"term {name!r} cannot teach the student: {', '.join(layers)} of the student requires no gradient "
            "(frozen layers, no_grad, detach() or a reentrant checkpoint): address a layer that learns, or "
            "give the term weight 0"
        )


def finetunes(trainer: Trainer) -> bool:
    """Tell whether a callback of a trainer freezes layers at first and unfreezes them later."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return any(isinstance(callback, BaseFinetuning) for callback in callbacks)


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
