"""Distillation for a LightningModule that knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial, wraps
from itertools import chain
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.batch import split_batch
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lightning_internals import active_results, average_model
from kd_lightning.core.progress import should_log
from kd_lightning.core.traits import is_changed
from kd_lightning.distributed import is_distributed
from kd_lightning.networks import digest, freeze, leave_out
from kd_lightning.taps import watch
from kd_lightning.terms import Term, check_terms, names

_BEFORE = "_kd_before"  # on a method that stands in for theirs: what their instance had in its place


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
        self.teacher = freeze(teacher)
        for name, term in check_terms(terms).items():
            for needs, scheme in (
                ("discriminate", "AdversarialDistiller"),
                ("differentiates_input", "OfflineDistiller"),
            ):
                if hasattr(term.loss, needs):
                    raise UsageError(
                        f"term {name!r}: {type(term.loss).__name__} needs more of a step than the drop-in has: "
                        f"learn by {scheme}"
                    )
        self.terms = nn.ModuleDict(terms)
        leave_out(self.terms)
        self._name: str | None = None  # of the terms, in their module
        self._digest: str | None = None
        self._has_logged = False

    @property
    def state_key(self) -> str:
        """One state a student, so that several can learn."""
        return self._generate_state_key(student=self.student)

    def state_dict(self) -> dict[str, Any]:
        """The teacher's digest, and what the losses have learned."""
        return {"teacher": self._digest, "terms": dict(self.terms.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Expects the teacher with which the run was started, and goes on with what the losses had learned."""
        self._digest = state_dict["teacher"]
        self.terms.load_state_dict(state_dict["terms"])

    # ---- what Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Registers the terms in their module, for devices, processes and schedules, and stands in for two methods."""
        if stage != "fit":
            return
        self._digest, self._has_logged = None, False
        self._name = "distillation_" + self.student.replace(".", "_")
        while hasattr(pl_module, self._name):
            self._name += "_"
        pl_module.add_module(self._name, self.terms)
        _stand_in(pl_module, "training_step", partial(self._training_step, trainer, pl_module))
        _stand_in(pl_module, "configure_optimizers", partial(self._configure_optimizers, trainer, pl_module))
        for average in _averages(trainer):  # pairs its copy's tensors with the module's by their place
            average.setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves their module as it was."""
        if self._name is None:
            return
        copies = [average_model(average) for average in _averages(trainer)]
        for module in (pl_module, *(copy.module for copy in copies if copy is not None)):
            _step_back(module)
            module._modules.pop(self._name, None)  # pyright: ignore[reportPrivateUsage]
        self._name = None
        self.teacher.cpu()  # where Lightning leaves the module, too
        self.terms.cpu()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves it so when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")

    # ---- what stands in for their methods

    def _configure_optimizers(self, trainer: Trainer, module: LightningModule, theirs: Callable[[], Any]) -> Any:
        """Their optimizers, and in them what the terms learn. The module is complete here, and where it is to be."""
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
        student = module.get_submodule(self.student)
        labels = self._labels(args[0] if args else None)  # before their step, which may take them out of the batch
        try:
            with watch(student, self._layers("student")) as seen, _calls(student) as calls:
                output = theirs(*args, **kwargs)
                loss = _loss_of(output)
                self._check_calls(module, calls)
        except _NoLossError as nothing:
            return nothing.args[0]
        with watch(self.teacher, self._layers("teacher")) as shown:
            self.teacher(*calls[0].args, **calls[0].kwargs)
        targets = {layer: activation.detach() for layer, activation in shown.items()}
        losses = {name: term(seen, targets, labels) for name, term in self._terms().items()}
        if should_log(trainer):
            self._log(trainer, module, losses)
        total = loss + torch.stack([term.weight * losses[name] for name, term in self._terms().items()]).sum()
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    # ---- inside

    def _terms(self) -> dict[str, Term]:
        return cast("dict[str, Term]", dict(self.terms.items()))

    def _layers(self, side: Literal["student", "teacher"]) -> list[str]:
        return [layer for term in self._terms().values() for layer in names(getattr(term, side))]

    def _labels(self, batch: Any) -> dict[str, Tensor]:
        if not isinstance(batch, Mapping) and not (isinstance(batch, tuple | list) and 1 <= len(batch) <= 3):
            return {}  # not a form that is known: there may be no loss that needs a label
        known = [name for term in self._terms().values() for name in names(term.target)]
        labels = cast("dict[str, Any]", split_batch(batch, known).labels)
        return {name: value for name, value in labels.items() if isinstance(value, Tensor)}

    def _check_student(self, module: LightningModule) -> None:
        there = [name for name, _ in module.named_modules(remove_duplicate=False)]
        if self.student not in there:
            nearest = get_close_matches(self.student, there, n=3, cutoff=0.3) or there[1:9]
            raise UsageError(
                f"{type(module).__name__} has no network {self.student!r} to be the student; the nearest names are "
                f"{', '.join(nearest)}"
            )
        if set(module.get_submodule(self.student).parameters()) & set(self.teacher.parameters()):
            raise UsageError(
                f"the teacher and the student {self.student!r} share parameters, and freezing one has frozen both: "
                "copy one of them"
            )

    def _check_calls(self, module: LightningModule, calls: list[_Call]) -> None:
        where = f"the student {self.student!r} of {type(module).__name__}"
        if not calls:
            raise UsageError(
                f"{where} did not run in training_step: name the network that it calls for its logits (or call "
                "torch.compiler.reset(), if that was compiled before kd_lightning was imported)"
            )
        if len(calls) > 1:
            raise UsageError(
                f"{where} ran {len(calls)} times in training_step, and the terms compare one output: make it one call "
                "on the concatenated inputs, or name a network that runs once"
            )
        if calls[0].versions not in ([], _versions(calls[0].args, calls[0].kwargs)):
            raise UsageError(
                f"the input of {where} was overwritten in place, and the teacher would see another one: clone it there"
            )

    def _prepare_teacher(self, trainer: Trainer, module: LightningModule) -> None:
        self.teacher.to(module.device)
        if is_distributed():
            for tensor in chain(self.teacher.parameters(), self.teacher.buffers()):
                dist.broadcast(tensor.data, src=0)
        self.teacher = trainer.precision_plugin.convert_module(self.teacher)
        found = digest(self.teacher)
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        # a teacher that changes is restored by the callback that changes it
        if self._digest not in (None, found) and not is_changed(self.teacher, callbacks, module):
            raise UsageError(
                f"this run was started with another teacher of {self.student!r} (sha256 {self._digest[:12]}) than it "
                f"is resumed with ({found[:12]}): build or load the one of then, or start a new run"
            )
        self._digest = found

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
        values: dict[str, Any] = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        for name, term in self._terms().items():
            if not torch.isfinite(losses[name]):
                raise UsageError(
                    f"the term {name!r} is not finite at step {trainer.global_step} ({losses[name].item():g}): look "
                    "for non-finite inputs, a learning rate that is too high, or a temperature far below 1"
                )
            if hasattr(term.loss, "temperature"):
                values[f"temperature/{name}"] = cast("float", term.loss.temperature)
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


class _Call(NamedTuple):
    """How the student was called."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[int]


@contextmanager
def _calls(network: nn.Module) -> Generator[list[_Call]]:
    calls: list[_Call] = []

    def keep(_network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a graph keeps no versions
        calls.append(_Call(args, kwargs, [] if torch.compiler.is_compiling() else _versions(args, kwargs)))

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    return [value._version for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


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


def _stand_in(module: nn.Module, name: str, ours: Callable[..., Any]) -> None:
    """Puts ours in the place of their method, on their instance; it is given theirs, and the arguments."""
    theirs = getattr(module, name)

    @wraps(theirs)
    def method(*args: Any, **kwargs: Any) -> Any:  # a function and no partial, for a copy of the module shares it
        return ours(theirs, *args, **kwargs)

    vars(method)["__wrapped__"] = getattr(theirs, "__wrapped__", theirs)  # whose arguments Lightning counts
    vars(method)[_BEFORE] = vars(module).get(name)
    vars(module)[name] = method


def _step_back(module: nn.Module) -> None:
    """Undoes every `_stand_in`."""
    for name in ("training_step", "configure_optimizers"):
        while hasattr(method := vars(module).get(name), _BEFORE):
            vars(module)[name] = getattr(method, _BEFORE)
            if vars(module)[name] is None:
                del vars(module)[name]
