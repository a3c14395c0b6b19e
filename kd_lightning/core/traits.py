"""Traits that callbacks and schemes declare, so that no callback has to know another one's class.

A trait is a class attribute, or a property where the answer depends on the arguments. Callbacks of other libraries
declare nothing and get the defaults below; yours are treated like those of this package as soon as they set one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from lightning.pytorch import Callback, LightningModule
from torch import nn

from kd_lightning.core.errors import UsageError


class CallbackTraits:
    """The traits of a callback with their defaults; there is no need to inherit from this class."""

    changes_teacher: bool = False
    """Changes the weights of a teacher during the fit."""
    needs_fixed_teacher: bool = False
    """Gives wrong results if the weights of a teacher change during the fit."""
    teacher_path: str | None = None
    """Dotted name, in the LightningModule, of the teacher that the two traits above are about; None for every one."""
    changes_step: bool = False
    """Changes the training step itself, e.g. a temperature: a step recorded as a CUDA graph would not follow."""
    hooks_are_recordable: bool = False
    """Its hooks within a training step only launch kernels, so that a CUDA graph may record them with the step; its
    method ``after_replay(trainer)`` is called after each replay."""
    idle_when_frozen: bool = False
    """Its hooks around a training step do nothing in this fit, because its network is frozen throughout."""


class SchemeTraits:
    """The traits of a LightningModule with their defaults; there is no need to inherit from this class."""

    steps_are_alike: bool = True
    """A training step runs the same operations for every batch: it depends neither on the batch's number nor on Python
    state that changes. Only such steps can be recorded once as a CUDA graph and replayed."""


Flag = Literal["changes_teacher", "needs_fixed_teacher", "changes_step", "hooks_are_recordable", "idle_when_frozen"]


def has_trait(callback: object, flag: Flag) -> bool:
    """Read a trait of any callback; one that does not declare it has the default.

    Example:
        >>> class Pruned(Callback):
        ...     changes_step = True
        >>> has_trait(Pruned(), "changes_step"), has_trait(Pruned(), "changes_teacher")
        (True, False)
    """
    return bool(getattr(callback, flag, getattr(CallbackTraits, flag)))


def steps_are_alike(module: object) -> bool:
    """Read the trait of any LightningModule; one that does not declare it has the default."""
    return bool(getattr(module, "steps_are_alike", SchemeTraits.steps_are_alike))


def is_idle_hook(callback: object, hook: str) -> bool:
    """Tell if `idle_when_frozen` covers a hook: a subclass that overrides the hook has to declare the trait again."""
    if not has_trait(callback, "idle_when_frozen") or hook in vars(callback):
        return False
    kind = type(callback)
    declares = next((base for base in kind.__mro__ if "idle_when_frozen" in vars(base)), kind)
    return getattr(kind, hook, None) is getattr(declares, hook, None)


def teacher_for(student: object, callbacks: Iterable[Callback]) -> nn.Module | None:
    """Find the teacher that a callback, such as `Distillation`, brings for the student of this name; else None."""
    pairs = ((getattr(callback, "student", None), getattr(callback, "teacher", None)) for callback in callbacks)
    teachers = (teacher for name, teacher in pairs if isinstance(teacher, nn.Module) and name == student)
    return next(teachers, None) if isinstance(student, str) else None


def is_changed(teacher: nn.Module, callbacks: Iterable[Callback], module: LightningModule) -> bool:
    """Tell if a callback changes this teacher during the fit, or changes one without naming it."""
    callbacks = list(callbacks)
    changing = [callback for callback in callbacks if has_trait(callback, "changes_teacher")]
    return any(_path(each) is None or _teacher_of(each, callbacks, module) is teacher for each in changing)


def check_teacher_use(own: Callback, callbacks: Iterable[Callback], module: LightningModule) -> None:
    """Refuse a callback that changes the teacher which `own` needs fixed or changes as well, and the reverse.

    Args:
        own: A callback with one of the two traits; it calls this in its `setup`.
        callbacks: All callbacks of the trainer.
        module: The LightningModule whose networks the paths name.

    Raises:
        UsageError: There is such a callback.
    """
    callbacks = list(callbacks)
    for other in callbacks:
        if other is own or not _share_a_teacher(own, other, callbacks, module):
            continue
        for changes, relies in ((own, other), (other, own)):
            has_a_use = has_trait(relies, "changes_teacher") or has_trait(relies, "needs_fixed_teacher")
            if has_trait(changes, "changes_teacher") and has_a_use:
                network = "the teacher" if _path(changes) is None else repr(_path(changes))
                raise UsageError(
                    f"{type(changes).__name__} changes {network} during the fit, and {type(relies).__name__} needs it "
                    "to itself or unchanged: give the trainer one of them"
                )


def _share_a_teacher(one: Callback, other: Callback, callbacks: list[Callback], module: LightningModule) -> bool:
    named = [_teacher_of(each, callbacks, module) for each in (one, other) if _path(each) is not None]
    return None not in named and all(network is named[0] for network in named)


def _path(callback: object) -> str | None:
    return getattr(callback, "teacher_path", CallbackTraits.teacher_path)


def _teacher_of(callback: Callback, callbacks: list[Callback], module: LightningModule) -> nn.Module | None:
    """The network that a callback's path names: another callback may bring it, else it is one of the module's."""
    if (brought := teacher_for(getattr(callback, "student", None), callbacks)) is not None:
        return brought
    try:
        return module.get_submodule(_path(callback) or "")
    except AttributeError:
        return None
