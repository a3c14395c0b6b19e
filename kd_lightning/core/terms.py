"""Terms: the losses of a scheme by name, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from kd_lightning.core.activations import Activations
from kd_lightning.core.errors import UsageError
from kd_lightning.core.label_kinds import are_distributions
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.term import Side, Term, names
from kd_lightning.core.torch_internals import is_of_convolution
from kd_lightning.core.zero_gradient import zero_of


class Terms(nn.ModuleDict):
    """The terms of a scheme by name: the layers that they need, their losses, and the weighted sum.

    A loss of weight 0 is not part of the sum; at steps without logging it is not computed either.

    Args:
        terms: The terms by name.

    Raises:
        UsageError: There are no terms, a name cannot be one, or a value is no term.

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
            if not isinstance(term, Term):  # pyright: ignore[reportUnnecessaryIsInstance]  # from unannotated arguments
                raise UsageError(
                    f"terms: {name!r} is a {type(term).__name__} and must be a Term: give Term(loss), and for a YAML "
                    "file annotate your scheme's argument, `terms: dict[str, Term]`"
                )
            self[name] = term
        self.is_checked = False
        self.last: dict[str, Tensor] = {}
        """The losses of the last step, without their graph."""

    def all(self) -> dict[str, Term]:
        """The terms by name, as a plain dict."""
        terms: Any = self._modules  # here and below: `items` and `cast` would be two more calls in every step
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
        if not self.is_checked:
            for term in terms.values():
                term.start()
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
                    check_kind_of_label(name, terms[name], student, labels)
            vars(self)["is_checked"] = True
        last = vars(self)["last"] = {}  # for an error's message, as the other lines of every step: no comprehension
        for name, loss in found.items():
            last[name] = loss.detach()
        return found

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum losses under the weights of their terms; a loss of weight 0 adds its graph and not its value."""
        terms: Any = self._modules
        total: Tensor | None = None
        for name, loss in losses.items():
            weight = terms[name].weight
            weighted = weight * loss if weight else zero_of(loss)
            total = weighted if total is None else total + weighted
        assert total is not None
        return total

    def check_not_adversarial(self, scheme: str) -> None:
        """Check that no term has a discriminator, which a scheme of one optimizer would train to help the student.

        Raises:
            UsageError: One has.
        """
        for name, term in self.all().items():
            if loss_trait(term.loss, "is_adversarial"):
                raise UsageError(
                    f"term {name!r} has a discriminator, which {scheme} would train to help the student: "
                    "use AdversarialDistiller"
                )

    def log_values(self, losses: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the values to log for a step: ``train/<term>`` of each loss, and ``temperature/<term>``."""
        values: dict[str, Any] = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        for name, term in self.all().items():
            if hasattr(term.loss, "temperature"):
                values[f"temperature/{name}"] = term.loss.temperature
        return values


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
    for layer in layers if term.class_dim is None and term.makes_rows() else ():
        if student[layer].dim() == 3 and is_of_convolution(student[layer]):
            raise UsageError(
                f"term {name!r}: {layer} of the student, {tuple(student[layer].shape)}, is the output of a "
                "convolution, which has its classes before the positions: set class_dim=1 of the term for (N, C, L), "
                "or class_dim=-1 if it is (N, L, C) nevertheless"
            )


def check_kind_of_label(name: str, term: Term, student: Activations, labels: Mapping[str, Tensor]) -> None:
    """Check that a loss over classes that exclude each other is not used beside labels that can hold together.

    Raises:
        UsageError: It is, with the term and the loss to use.
    """
    if not loss_trait(term.loss, "softmax_over_classes") or not isinstance(term.student, str):
        return
    outputs, label = student[term.student], labels.get(term.target) if isinstance(term.target, str) else None
    if not isinstance(label, Tensor) or label.shape != outputs.shape or label.dim() not in (2, 3):
        return
    if not are_distributions(label):
        raise UsageError(
            f"term {name!r}: {type(term.loss).__name__} compares distributions over classes that exclude each other, "
            f"and the rows of the label {tuple(label.shape)} do not sum to 1: for labels that can hold together use "
            "BernoulliKDLoss and BinaryTaskLoss, for real values LogitMSELoss and RegressionTaskLoss"
        )


def finetunes(trainer: Trainer) -> bool:
    """Tell whether a callback of a trainer freezes layers at first and unfreezes them later."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return any(isinstance(callback, BaseFinetuning) for callback in callbacks)
