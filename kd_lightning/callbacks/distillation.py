"""Distillation as a callback, for any LightningModule without changes to its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from kd_lightning.callbacks.patching import replace_method, restore_methods
from kd_lightning.callbacks.starting_state import StartingState
from kd_lightning.callbacks.user_module import (
    NoLossError,
    add_to_optimizer,
    check_calls,
    check_resumed_terms,
    check_rows,
    check_student,
    labels_of,
    loss_of,
    optimizers_in,
    rows_of,
    weight_averages,
)
from kd_lightning.core.activations import Activations, Call, record_activations, record_calls
from kd_lightning.core.attached import callbacks_of
from kd_lightning.core.checkpoint_monitors import attach_monitors
from kd_lightning.core.compiled_calls import anything_compiled, hook_guards
from kd_lightning.core.drowned_task import soft_terms, warn_of_drowned_task
from kd_lightning.core.errors import UsageError
from kd_lightning.core.finite_check import attach_finite_check
from kd_lightning.core.freezing import exclude_from_state_dict
from kd_lightning.core.lightning_internals import active_results, average_model
from kd_lightning.core.loader_sizes import attach_loader_sizes
from kd_lightning.core.loss import loss_trait
from kd_lightning.core.network_call import call as call_network, without_graph
from kd_lightning.core.progress import should_log
from kd_lightning.core.teacher_holder import TeacherHolder
from kd_lightning.core.term import Term
from kd_lightning.core.terms import Terms
from kd_lightning.core.training_means import TrainingMeans
from kd_lightning.core.traits import is_changed


class Distillation(Callback):
    r"""Add distillation to any LightningModule for the length of a fit, without changes to its code.

    The terms are added to the loss that the module's ``training_step`` returns, a tensor or a dict's ``loss``:

    .. math:: L = L_\text{module} + \sum_k w_k \, L_k(\text{student}, \text{teacher}, \text{labels})

    **Student and teacher.** The student's activations are recorded where the module's own step calls it, and the
    teacher is called with the same arguments, so that both get the same augmentation. The teacher is frozen and held
    outside the module: it is in none of the module's parameters, averages and files. After the fit, and after an
    exception, module and teacher are restored.

    **Parameters of losses** (connectors) join the first parameter group of the module's optimizer, and are saved as the
    callback's state: the module's class loads its checkpoints without this package.

    **Several fits.** With another module, as in each fold of a cross-validation, the losses' parameters start as they
    were before the first fit; with the same module they continue, as it does. Folds that give one module its first
    weights again are warned of: build the module or this callback anew for each.

    **Logging.** Each term is logged unweighted as ``train/<name>`` and each temperature as ``temperature/<name>``, at
    the steps that the loggers keep, and monitors find the means over the epoch; the module's own loss is logged by the
    module alone.

    **Labels** are ``target`` and ``index`` of a batch ``(x, target, index)``, and have their own names in a mapping: a
    term on torchgeo's batches has ``target="label"``. They belong to the rows of the batch: a step that permutes or
    mixes these before its student gets them is refused where a term needs labels.

    Args:
        student: Dotted name, in the module, of the network that returns the logits; ``""`` is the module itself.
        teacher: The network that teaches; it is frozen, and called with the student's arguments.
        terms: The losses by name, each with its addresses and weight.

    Raises:
        UsageError: At the start of a fit: there is no such student (the nearest names are given), it shares parameters
            that learn with the teacher, or the module has no single loss to add to. In a step: a loss is not finite, or
            the module logs something else under its name.
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
                        f"term {name!r}: {type(term.loss).__name__} needs a training step that Distillation does not "
                        f"have: use {scheme}"
                    )
        exclude_from_state_dict(self.terms)
        self._start = StartingState(self.terms)
        self._name: str | None = None  # the name of the terms in the module
        self._expected: str | None = None  # the hash of the resumed run's teacher
        self._has_logged = False
        self._compiles = True
        self._compares = False
        self._means = TrainingMeans()  # outside of a fit

    @property
    def teacher(self) -> nn.Module:
        """The network that teaches."""
        return self.held.network

    @property
    def state_key(self) -> str:
        """Key of the state, one for each student, so that a module can have several."""
        return self._generate_state_key(student=self.student)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's hash and the parameters of the losses."""
        return {"teacher": self.held.hash, "terms": dict(self.terms.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the parameters of the losses, and keep the hash of the teacher with which the run was started."""
        self._expected = state_dict["teacher"]
        self.terms.load_state_dict(state_dict["terms"])

    # ---- Lightning hooks

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the resumed run had the parameters of these terms, as its optimizer's state fits no others."""
        check_resumed_terms(self.terms, self.student, checkpoint["callbacks"].get(self.state_key))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register the terms in the module, for devices, processes and schedules, and replace two of its methods."""
        if stage != "fit":
            return
        self._start.start(pl_module)  # first, as it may refuse the module
        attach_finite_check(trainer, pl_module)
        self._means = attach_monitors(trainer, pl_module)
        attach_loader_sizes(trainer)
        self.held.hold()
        self._expected, self._has_logged, self._compiles = None, False, True
        self.terms.start_fit(trainer)
        self._compares = self.terms.compares_gradients
        self.terms.compares_gradients = False  # the labels are in the module's own loss
        self._name = "distillation_" + self.student.replace(".", "_")
        while hasattr(pl_module, self._name):
            self._name += "_"
        pl_module.add_module(self._name, self.terms)
        replace_method(pl_module, "training_step", partial(self._training_step, trainer, pl_module))
        replace_method(pl_module, "configure_optimizers", partial(self._configure_optimizers, trainer, pl_module))
        # Set up again, as it pairs the tensors of its copy with those of the module by their order.
        for average in weight_averages(trainer):
            average.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the teacher beside the summary of the module, which does not hold it."""
        self.held.announce(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the teacher has not changed, unless a callback declares that it changes it."""
        if not self._teacher_changes(trainer):
            self.held.prove()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the module and the teacher."""
        if self._name is None:
            return
        copies = [average_model(average) for average in weight_averages(trainer)]
        for module in (pl_module, *(copy.module for copy in copies if copy is not None)):
            restore_methods(module, "training_step", "configure_optimizers")
            module._modules.pop(self._name, None)  # pyright: ignore[reportPrivateUsage]
        self._name = None
        self.held.release()
        self.terms.cpu()  # where Lightning leaves the module as well
        self._start.end(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the module and the teacher when the fit fails."""
        self.teardown(trainer, pl_module, "fit")

    # ---- the replaced methods

    def _configure_optimizers(self, trainer: Trainer, module: LightningModule, original: Callable[[], Any]) -> Any:
        """Add the terms' parameters to the module's optimizer; the module is complete here, and on its device."""
        name = cast("str", self._name)
        # Without the terms, so that `self.parameters()` in the original method are the module's own.
        del module._modules[name]  # pyright: ignore[reportPrivateUsage]
        check_student(module, self.student, self.held)
        configured = original()
        module.add_module(name, self.terms)
        self._prepare_teacher(trainer, module)
        add_to_optimizer(module, optimizers_in(configured), self.terms)
        return configured

    def _training_step(
        self, trainer: Trainer, module: LightningModule, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return the output of the original step, with the terms added to its loss."""
        logged = should_log(trainer)
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        vars(self.terms)["skip_unweighted"] = not (logged or is_last)
        student = module.get_submodule(self.student)
        labels = labels_of(args[0] if args else None, self.terms.labels())  # first, as the step may take them out
        looks = labels and (logged or not self.terms.is_checked)  # which waits for the device
        rows = rows_of(args[0], self.terms.all(), labels) if looks else None
        output: Any = None
        try:
            with record_activations(student, self.terms.layers("student")) as recorded, record_calls(student) as calls:
                # The guards are for a step, or a function in it, that is compiled around the student.
                with hook_guards() if self._compiles else nullcontext():
                    output = original(*args, **kwargs)
                loss = loss_of(output)
                check_calls(module, self.student, calls)
        except NoLossError:  # which leaves the recording before it checks that every layer has run
            return output
        self._compiles = self._compiles and anything_compiled()
        losses = self.terms.losses(recorded, self._teacher_activations(calls[0]), labels)
        check_rows(self.student, rows, calls[0])  # after what the terms say of themselves
        if self._compares:
            self._compares = False
            weights = {name: term.weight for name, term in soft_terms(self.terms.all()).items()}
            warn_of_drowned_task(loss, {name: weight * losses[name] for name, weight in weights.items()}, weights)
        self._means.add(self.terms, losses)
        if logged:
            self._log(trainer, module, losses)
        total = loss + self.terms.weighted_sum(losses)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    # ---- inside

    def _teacher_activations(self, call: Call) -> Activations:
        """Return the teacher's activations for the arguments of a call of the student."""
        layers = self.terms.layers("teacher")
        if not layers:
            return {}
        with record_activations(self.teacher, layers) as activations:
            call_network(self.teacher, *without_graph(call.args), **without_graph(call.kwargs))
        return {layer: activation.detach() for layer, activation in activations.items()}

    def _teacher_changes(self, trainer: Trainer) -> bool:
        callbacks = callbacks_of(trainer)
        return is_changed(self.teacher, callbacks, trainer.lightning_module)

    def _prepare_teacher(self, trainer: Trainer, module: LightningModule) -> None:
        self.terms.teacher_is_fixed = not self._teacher_changes(trainer)
        self.held.prepare(module.device, trainer.precision_plugin, self.terms.teacher_is_fixed)
        self.held.broadcast()
        # A teacher that a callback changes is in that callback's state.
        self.held.remember(self._expected if self.terms.teacher_is_fixed else None)

    def _log(self, trainer: Trainer, module: LightningModule, losses: dict[str, Tensor]) -> None:
        values = self.terms.log_values(losses)
        logged = active_results(trainer)
        for name in () if self._has_logged else values:
            if f"training_step.{name}" in logged and not logged[f"training_step.{name}"].has_reset:
                raise UsageError(
                    f"{name!r} is logged by {type(module).__name__} or another term: give the term another name"
                )
        self._has_logged = True
        module.log_dict(values, batch_size=1)  # without effect, but required where a step iterates over batches itself
