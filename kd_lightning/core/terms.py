"""Terms: the losses of a scheme by name, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from kd_lightning.core.activations import Activations
from kd_lightning.core.arguments import check_mapping
from kd_lightning.core.attached import find_attached
from kd_lightning.core.can_teach import check_can_teach, check_kind_of_label, check_single_sample
from kd_lightning.core.drowned_task import can_compare_gradients, soft_terms, warn_of_drowned_task
from kd_lightning.core.errors import UsageError
from kd_lightning.core.first_batch import check_inputs_of, explained
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.network_call import is_of_torch
from kd_lightning.core.term import Side, Term, names
from kd_lightning.core.zero_gradient import zero_of


class Terms(nn.ModuleDict):
    """The terms of a scheme by name: the layers that they need, their losses, and the weighted sum.

    A loss of weight 0 is not part of the sum; at steps without logging it is not computed either.

    Args:
        terms: The terms by name.

    Raises:
        UsageError: There are no terms or no mapping of them, a name cannot be one, or a value is no term.

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
        check_mapping(terms, "terms", "{'kd': Term(KDLoss(4.0))}")
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
        self.teacher_is_fixed = False
        """The teacher is trained already, so that one no better than chance is worth a warning."""
        self.compares_gradients = False
        """The first step compares the gradients of the terms with that of the labels."""
        self.ends_with_one_sample = False
        """The last batch of an epoch has one sample, of all processes together."""
        self._checked: set[str] = set()
        self._may_unfreeze = False
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

        In the first call of a fit in which a term has a weight other than 0 it is checked: the tensors that it
        compares, and that its loss is a scalar of which one of the student's activations gets a gradient
        (`kd_lightning.core.first_batch`).

        Args:
            student: The student's activations.
            teacher: The teacher's, or None.
            labels: The labels of the batch.
            only: The names of some of the terms; all of them if not given.

        Raises:
            UsageError: As for `Term`; a weighted term cannot teach the student, or gets probabilities or labels that
                are none of its classes; or torch refuses the inputs of a loss.
        """
        terms: Any = self._modules
        new = {} if self.is_checked else self._check_inputs(student, teacher, labels, only)
        found: dict[str, Tensor] = {}
        for name in terms if only is None else only:
            term = terms[name]
            if term.weight or not self.skip_unweighted:
                try:
                    found[name] = term(student, teacher, labels)
                except (RuntimeError, TypeError, IndexError) as error:
                    if is_of_torch(error):
                        raise explained(name, term, student, teacher, labels, error) from error
                    raise
            else:
                found[name] = term.idle(student, torch.zeros((), device=next(iter(student.values())).device))
        if new:
            self._check_losses(new, found, student, labels)
            if self.ends_with_one_sample:
                for name, term in new.items():
                    check_single_sample(name, term, student, teacher, labels)
        last = vars(self)["last"] = {}  # for an error's message, as the other lines of every step: no comprehension
        for name, loss in found.items():
            last[name] = loss.detach()
        return found

    def start_fit(self, trainer: Trainer) -> None:
        """Check every term again; layers that a callback unfreezes later need not be able to learn yet."""
        self.is_checked = self.teacher_is_fixed = self.ends_with_one_sample = False
        self._checked = set()
        self._may_unfreeze = finetunes(trainer)
        self.compares_gradients = can_compare_gradients(trainer)

    def _check_inputs(
        self,
        student: Activations,
        teacher: Activations | None,
        labels: dict[str, Tensor],
        only: Iterable[str] | None,
    ) -> dict[str, Term]:
        """Check what terms compare that are used for the first time, and return these terms."""
        terms = self.all()
        if not self._checked:
            for term in terms.values():
                term.start()
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return {}
        names = terms if only is None else only
        new = {name: terms[name] for name in names if terms[name].weight and name not in self._checked}
        if new:
            check_inputs_of(new, student, teacher, labels, self.teacher_is_fixed)
        return new

    def _check_losses(
        self, new: dict[str, Term], losses: dict[str, Tensor], student: Activations, labels: dict[str, Tensor]
    ) -> None:
        """Check that terms can teach which are used for the first time."""
        for name, term in new.items():
            if not self._may_unfreeze:
                check_can_teach(name, term, student, losses[name])
            check_kind_of_label(name, term, student, labels)
        if self.compares_gradients:
            self._compare_gradients(new, losses)
        self._checked |= new.keys()
        vars(self)["is_checked"] = len(self._checked) == len(self)

    def _compare_gradients(self, new: dict[str, Term], losses: dict[str, Tensor]) -> None:
        """Warn where the soft targets drown the labels; a weight of labels below 1 counts as 1."""
        of_labels = [
            name for name, term in new.items() if term.teacher is None and loss_trait(term.loss, "needs_target")
        ]
        taught = {name: term.weight * losses[name] for name, term in soft_terms(new).items()}
        if of_labels and taught:
            self.compares_gradients = False
            task = torch.stack([max(1.0, new[name].weight) * losses[name] for name in of_labels]).sum()
            warn_of_drowned_task(task, taught, {name: new[name].weight for name in taught})

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


def finetunes(trainer: Trainer) -> bool:
    """Tell whether a callback of a trainer freezes layers at first and unfreezes them later."""
    return find_attached(trainer, BaseFinetuning) is not None
