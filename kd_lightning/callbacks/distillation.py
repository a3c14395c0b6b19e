"""Distillation for a LightningModule that knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.callbacks.patching import replace_method, restore_methods
from kd_lightning.core.activations import Activations, Call, record_activations, record_calls
from kd_lightning.core.batch import split_batch
from kd_lightning.core.compiled_calls import anything_compiled, hook_guards
from kd_lightning.core.errors import UsageError
from kd_lightning.core.freezing import exclude_from_state_dict
from kd_lightning.core.lightning_internals import active_results, average_model
from kd_lightning.core.lookup import find_network
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.progress import should_log
from kd_lightning.core.teacher_holder import TeacherHolder
from kd_lightning.core.terms import Term, Terms, finetunes
from kd_lightning.core.traits import is_changed


class Distillation(Callback):
    r"""Adds distillation to anyone's LightningModule for the length of a fit; their code is untouched.

    To the loss that their ``training_step`` returns, a tensor or a dict's ``loss``, comes what the terms find:

    .. math:: L = L_\text{theirs} + \sum_k w_k \, L_k(\text{student}, \text{teacher}, \text{labels})

    The student is watched where their step calls it, and the teacher is called with the same arguments, so that both
    see one augmentation. What losses learn (connectors) joins the first parameter group of their optimizer, and is
    saved as the callback's state: their class loads their checkpoints without us. The teacher is no part of their
    module: it is in none of its parameters, averages and files.

    Each term is logged by name and unweighted as ``train/<name>``, each temperature as ``temperature/<name>``, at the
    steps that the loggers keep; their own loss, as they log it. Labels are ``target`` and ``index`` where a batch is
    ``(x, target, index)``, and what they are called where it is a mapping: a term on torchgeo's batches says
    ``target="label"``.

    Args:
        student: Dotted name, in their module, of the network that gives the logits; ``""`` is the module itself.
        teacher: The network that teaches; it is frozen, and called as the student is.
        terms: The losses by name, each with its addresses and weight.

    Raises:
        UsageError: At the start of a fit: there is no such student (the nearest names are given), it shares parameters
            with the teacher, or their module has no single loss to add to. In a step: a loss is not finite, or they
            log something else under its name.
        UsageError: In a step: the student ran never, or more than once, or its input was overwritten. At a resume:
            the teacher is not the one that the run was started with.

    Example:
        >>> from kd_lightning.losses import KDLoss
        >>> from kd_lightning.networks import TeacherConvNet
        >>> Distillation("backbone", TeacherConvNet(), {"kd": Term(KDLoss(temperature=4.0), weight=0.9)}).state_key
        "Distillation{'student': 'backbone'}"
    """

    def __init__(self, student: str, teacher: nn.Module, terms: dict[str, Term]) -> None:
        self.student = student
        self.held = TeacherHolder(teacher, f"teacher of {student!r}")
        self.terms = Terms(terms)
        for name, term in terms.items():
            for trait, scheme in (
                ("is_adversarial", "AdversarialDistiller"),
                ("differentiates_input", "OfflineDistiller"),
            ):
                if loss_trait(term.loss, trait):
                    raise UsageError(
                        f"term {name!r}: {type(term.loss).__name__} needs more of a step than the drop-in has: "
                        f"learn by {scheme}"
                    )
        exclude_from_state_dict(self.terms)
        self._name: str | None = None  # of the terms, in their module
        self._expected: str | None = None  # the hash of the teacher of the run that is resumed
        self._has_logged = False
        self._compiles = True

    @property
    def teacher(self) -> nn.Module:
        """The network that teaches."""
        return self.held.network

    @property
    def state_key(self) -> str:
        """One state a student, so that several can learn."""
        return self._generate_state_key(student=self.student)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's hash, and what the losses have learned."""
        return {"teacher": self.held.hash, "terms": dict(self.terms.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Expect the teacher with which the run was started, and load what the losses had learned."""
        self._expected = state_dict["teacher"]
        self.terms.load_state_dict(state_dict["terms"])

    # ---- what Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register the terms in their module, for devices, processes and schedules, and replace two methods."""
        if stage != "fit":
            return
        self.held.hold()
        self._expected, self._has_logged, self._compiles = None, False, True
        self.terms.is_checked = finetunes(trainer)
        self._name = "distillation_" + self.student.replace(".", "_")
        while hasattr(pl_module, self._name):
            self._name += "_"
        pl_module.add_module(self._name, self.terms)
        replace_method(pl_module, "training_step", partial(self._training_step, trainer, pl_module))
        replace_method(pl_module, "configure_optimizers", partial(self._configure_optimizers, trainer, pl_module))
        for average in _averages(trainer):  # pairs its copy's tensors with the module's by their place
            average.setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prove that nothing has changed the teacher, unless a callback is there to do so."""
        if not self._teacher_moves(trainer):
            self.held.prove()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave their module, and the teacher, as they were."""
        if self._name is None:
            return
        copies = [average_model(average) for average in _averages(trainer)]
        for module in (pl_module, *(copy.module for copy in copies if copy is not None)):
            restore_methods(module, "training_step", "configure_optimizers")
            module._modules.pop(self._name, None)  # pyright: ignore[reportPrivateUsage]
        self._name = None
        self.held.release().cpu()  # where Lightning leaves the module, too
        self.terms.cpu()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave them so when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")

    # ---- the replaced methods

    def _configure_optimizers(self, trainer: Trainer, module: LightningModule, theirs: Callable[[], Any]) -> Any:
        """Their optimizers, and in them what the terms learn. The module is complete here, and on its device."""
        name = cast("str", self._name)
        del module._modules[name]  # pyright: ignore[reportPrivateUsage]  # so that their `self.parameters()` are theirs
        configured = theirs()
        self._check_student(module)
        module.add_module(name, self.terms)
        self._prepare_teacher(trainer, module)
        self._join(module, _optimizers(configured))
        return configured

    def _training_step(
        self, trainer: Trainer, module: LightningModule, theirs: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Their step's output, with the terms added to its loss."""
        logged = should_log(trainer)
        vars(self.terms)["skip_unweighted"] = not logged
        student = module.get_submodule(self.student)
        labels = self._labels(args[0] if args else None)  # before their step, which may take them out of the batch
        try:
            with record_activations(student, self.terms.layers("student")) as seen, record_calls(student) as calls:
                # a step, or a function in it, may be compiled around the student
                with hook_guards() if self._compiles else nullcontext():
                    output = theirs(*args, **kwargs)
                loss = _loss_of(output)
                self._check_calls(module, calls)
        except _NoLossError as nothing:
            return nothing.args[0]
        self._compiles = self._compiles and anything_compiled()
        losses = self.terms.losses(seen, self._targets(calls[0]), labels)
        if logged:
            self._log(trainer, module, losses)
        total = loss + self.terms.weighted_sum(losses)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    # ---- inside

    def _targets(self, call: Call) -> Activations:
        """The teacher's activations, of a call with the student's arguments."""
        layers = self.terms.layers("teacher")
        if not layers:
            return {}
        with record_activations(self.teacher, layers) as activations:
            self.teacher(*call.args, **call.kwargs)
        return {layer: activation.detach() for layer, activation in activations.items()}

    def _labels(self, batch: Any) -> dict[str, Tensor]:
        if not isinstance(batch, Mapping) and not (isinstance(batch, tuple | list) and 1 <= len(batch) <= 3):
            return {}  # not a form that is known: there may be no loss that needs a label
        labels = cast("dict[str, Any]", split_batch(batch, self.terms.labels()).labels)
        return {name: value for name, value in labels.items() if isinstance(value, Tensor)}

    def _check_student(self, module: LightningModule) -> None:
        student = find_network(module, self.student, "to be the student")
        if set(student.parameters()) & set(self.teacher.parameters()):
            raise UsageError(
                f"the teacher and the student {self.student!r} share parameters, and freezing one has frozen both: "
                "copy one of them"
            )

    def _check_calls(self, module: LightningModule, calls: list[Call]) -> None:
        where = f"the student {self.student!r} of {type(module).__name__}"
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
                f"the input of {where} was overwritten in place, and the teacher would see another one: clone it there"
            )

    def _teacher_moves(self, trainer: Trainer) -> bool:
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return is_changed(self.teacher, callbacks, trainer.lightning_module)

    def _prepare_teacher(self, trainer: Trainer, module: LightningModule) -> None:
        self.teacher.to(module.device)
        self.held.broadcast()
        self.held.network = trainer.precision_plugin.convert_module(self.teacher)
        # one that moves comes with the state of the callback that moves it
        self.held.remember(None if self._teacher_moves(trainer) else self._expected)

    def _join(self, module: LightningModule, optimizers: list[Optimizer]) -> None:
        if not module.automatic_optimization or len(optimizers) > 1:
            has = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else "manual optimization"
            raise UsageError(
                f"{type(module).__name__} has {has}, and so no single loss to add terms to: add kd_lightning.losses "
                "to its own losses in training_step"
            )
        known = {
            parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
        }
        new = {name: p for name, p in self.terms.named_parameters() if p.requires_grad and p not in known}
        if not new:
            return
        if not optimizers:
            raise UsageError(
                f"{type(module).__name__} has no optimizer to train {', '.join(new)} of the terms: give it one"
            )
        # Their first group, for a new one would be one too many for a scheduler that they have built already.
        group = optimizers[0].param_groups[0]
        group["params"].extend(new.values())
        if "param_names" in group:
            group["param_names"].extend(new)

    def _log(self, trainer: Trainer, module: LightningModule, losses: dict[str, Tensor]) -> None:
        values = self.terms.log_values(losses)
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                raise UsageError(
                    f"the term {name!r} is not finite at step {trainer.global_step} ({loss.item():g}): look "
                    "for non-finite inputs, a learning rate that is too high, or a temperature far below 1"
                )
        logged = active_results(trainer)
        for name in () if self._has_logged else values:
            if f"training_step.{name}" in logged and not logged[f"training_step.{name}"].has_reset:
                raise UsageError(
                    f"{name!r} is logged by {type(module).__name__} or another term: give the term another name"
                )
        self._has_logged = True
        module.log_dict(values, batch_size=1)  # of no effect, but asked for where a step takes its batches itself


class _NoLossError(Exception):
    """Their step returned nothing to add to: it is skipped, or Lightning will say what is wrong with it."""


def _loss_of(output: Any) -> Tensor:
    loss = cast("Mapping[str, Any]", output).get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise _NoLossError(output)
    return loss


def _optimizers(configured: Any) -> list[Optimizer]:
    """Those in whatever configure_optimizers may return."""
    if isinstance(configured, Mapping):
        configured = cast("Mapping[str, Any]", configured).get("optimizer")
    if isinstance(configured, list | tuple):
        return [optimizer for part in cast("list[Any]", configured) for optimizer in _optimizers(part)]
    return [configured] if isinstance(configured, Optimizer) else []


def _averages(trainer: Trainer) -> list[WeightAveraging]:
    callbacks = cast("list[Callback]", trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
