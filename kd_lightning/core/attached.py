"""Callbacks that the package adds to a trainer for the length of a fit, and takes away again."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer

CallbackT = TypeVar("CallbackT", bound=Callback)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks, in their order."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def find_attached(trainer: Trainer, kind: type[CallbackT]) -> CallbackT | None:
    """Return a trainer's first callback of a class; None if it has none."""
    return next((each for each in callbacks_of(trainer) if isinstance(each, kind)), None)


def attach(trainer: Trainer, *callbacks: Callback) -> None:
    """Put callbacks in front of a trainer's own, in another list, since Lightning iterates over the present one.

    Example:
        >>> trainer, first = Trainer(logger=False, callbacks=Callback()), Callback()
        >>> attach(trainer, first)
        >>> callbacks_of(trainer)[0] is first
        True
    """
    _replace(trainer, [*callbacks, *callbacks_of(trainer)])


def detach(trainer: Trainer, callback: Callback) -> None:
    """Take a callback away from a trainer, if it is there."""
    _replace(trainer, [each for each in callbacks_of(trainer) if each is not callback])


def _replace(trainer: Any, callbacks: list[Callback]) -> None:
    trainer.callbacks = callbacks
