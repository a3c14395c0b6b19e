"""The user's LightningModule as `Distillation` finds it: its student, its calls, its loss and its optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.callbacks.mixed_rows import are_mixed
from kd_lightning.core.activations import Call
from kd_lightning.core.batch import fields_of, split_batch
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import check_sharing
from kd_lightning.core.lookup import find_network
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.modes import check_in_training
from kd_lightning.core.network_call import tensors_in
from kd_lightning.core.teacher_holder import TeacherHolder
from kd_lightning.core.term import Term, names


def labels_of(batch: Any, names: list[str]) -> dict[str, Tensor]:
    """Return the labels of a batch: ``target``, ``index`` and, of a mapping, `names`; empty for other batches."""
    if isinstance(batch, tuple | list) and fields_of(batch, names) is None and not 1 <= len(batch) <= 3:
        return {}  # an unknown form, which is no mistake where no loss needs a label
    labels = cast("dict[str, Any]", split_batch(batch, names).labels)
    return {name: value for name, value in labels.items() if isinstance(value, Tensor)}


class NoLossError(Exception):
    """A training step returned no loss: it is skipped, or Lightning reports the mistake."""


def loss_of(output: Any) -> Tensor:
    """Return the loss in the output of a ``training_step``.

    Raises:
        NoLossError: There is none.
    """
    loss = cast("Mapping[str, Any]", output).get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise NoLossError
    return loss


def check_student(module: LightningModule, name: str, held: TeacherHolder) -> None:
    """Check that a module has the student and that the frozen teacher freezes nothing that it learns.

    Raises:
        UsageError: There is no network of that name (the nearest are given), it is in eval mode, or they share
            parameters that learn.
    """
    student = find_network(module, name, "to be the student")
    check_in_training(student, f"the student {name!r}")
    check_sharing(student, held.network, held.learned, f"the teacher and the student {name!r}")


def check_calls(module: LightningModule, name: str, calls: list[Call]) -> None:
    """Check that a training step has called the student once, and that its input still has the same values.

    Raises:
        UsageError: The student ran never or more than once, or its input was overwritten in place.
    """
    where = f"the student {name!r} of {type(module).__name__}"
    if not calls:
        raise UsageError(
            f"{where} did not run in training_step: name the network that it calls for its logits (or call "
            "torch.compiler.reset(), if a function around it was compiled before)"
        )
    if len(calls) > 1:
        raise UsageError(
            f"{where} ran {len(calls)} times in training_step, and the terms compare one output: make it one call "
            "on the concatenated inputs, or name a network that runs once"
        )
    if calls[0].was_overwritten():
        raise UsageError(
            f"the input of {where} was overwritten in place, and the teacher would get other values: clone the input "
            "before it is changed"
        )


def rows_of(batch: Any, terms: Mapping[str, Term], labels: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """Return the first term that pairs labels or a mask with rows, and a copy of the batch's input; None without."""
    for name, term in terms.items():
        needs = [*(names(term.target) if loss_trait(term.loss, "needs_target") else []), term.mask]
        if term.weight and any(label in labels for label in needs):
            first = next(tensors_in(split_batch(batch, list(labels)).student), None)
            return None if first is None else (name, first.detach().clone())
    return None


def check_rows(name: str, batch: tuple[str, Tensor] | None, call: Call) -> None:
    """Check that the student got the rows of the batch that the labels are of.

    Args:
        name: The student's name.
        batch: What `rows_of` returned before the step.
        call: The student's call in the step.

    Raises:
        UsageError: It got permuted or mixed rows.
    """
    seen = None if batch is None else next(tensors_in((call.args, call.kwargs)), None)
    if batch is not None and seen is not None and are_mixed(seen, batch[1]):
        raise UsageError(
            f"training_step gave the student {name!r} permuted or mixed rows of the batch, and term {batch[0]!r} has "
            "the labels of the batch: mix inputs and labels before the step, in on_after_batch_transfer or the loader"
        )


def optimizers_in(configured: Any) -> list[Optimizer]:
    """List the optimizers in any value that ``configure_optimizers`` may return."""
    if isinstance(configured, Mapping):
        configured = cast("Mapping[str, Any]", configured).get("optimizer")
    if isinstance(configured, list | tuple):
        return [optimizer for part in cast("list[Any]", configured) for optimizer in optimizers_in(part)]
    return [configured] if isinstance(configured, Optimizer) else []


def add_to_optimizer(module: LightningModule, optimizers: list[Optimizer], terms: nn.Module) -> None:
    """Add the parameters of terms that no optimizer has yet to the first group of the module's optimizer.

    Raises:
        UsageError: The module has several optimizers or manual optimization, or none and the terms have parameters.
    """
    if not module.automatic_optimization or len(optimizers) > 1:
        has = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else "manual optimization"
        raise UsageError(
            f"{type(module).__name__} has {has}, and so no single loss to add terms to: add kd_lightning.losses "
            "to its own losses in training_step"
        )
    known = {parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    new = {name: p for name, p in terms.named_parameters() if p.requires_grad and p not in known}
    if not new:
        return
    if not optimizers:
        raise UsageError(
            f"{type(module).__name__} has no optimizer to train {', '.join(new)} of the terms: give it one"
        )
    # The first group, because a scheduler that the module has built already has no learning rate for a new one.
    group = optimizers[0].param_groups[0]
    group["params"].extend(new.values())
    if "param_names" in group:
        group["param_names"].extend(new)


def check_resumed_terms(terms: nn.Module, student: str, state: Mapping[str, Any] | None) -> None:
    """Check that a checkpoint is of a run whose terms had the same parameters.

    Args:
        terms: The terms of this run.
        student: The student's name.
        state: The state of `Distillation` in the checkpoint; None if the run had none.

    Raises:
        UsageError: The run had others, or was without distillation and the terms have parameters.
    """
    learned = {name for name, parameter in terms.named_parameters() if parameter.requires_grad}
    now, then = (learned, set[str]()) if state is None else (set(terms.state_dict()), set(state["terms"]))
    if now != then:
        different = ", ".join(sorted(now ^ then)[:3])
        run = "without distillation" if state is None else "with other terms"
        raise UsageError(
            f"this checkpoint is of a run {run} of the student {student!r}, and its optimizer has no state of the "
            f"terms' {different}: load its weights into the module and fit without ckpt_path"
            if now - then
            else f"this checkpoint is of a run {run} of the student {student!r}, whose terms had {different}: give "
            "Distillation the same terms, or load its weights into the module and fit without ckpt_path"
        )


def weight_averages(trainer: Trainer) -> list[WeightAveraging]:
    """List the trainer's callbacks that average weights."""
    callbacks = cast("list[Callback]", trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
