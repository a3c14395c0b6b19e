"""The logged values of a training epoch, kept without the searches of Lightning's own collection."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from kd_lightning.core.lightning_internals import ResultCollection, ResultMetric


class FastResults(ResultCollection):
    """Lightning's collection, which in addition remembers that a step has logged something."""

    has_logged = False
    """True as soon as anything is logged; `FastStep` sets it back before each step."""

    @override
    def log(self, *args: Any, **kwargs: Any) -> None:
        self.has_logged = True
        super().log(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    @override
    def __setitem__(self, key: str, metric: ResultMetric) -> None:
        metric.__class__ = FastMetric
        super().__setitem__(key, metric)


class FastMetric(ResultMetric):
    """Lightning's metric, which moves to a device only where it is on another one.

    Lightning calls ``to`` whenever a value is logged, and searches all of the metric's attributes for tensors.
    """

    @override
    def to(self, *args: Any, **kwargs: Any) -> ResultMetric:
        value: Any = vars(self).get("value")
        if kwargs or args != (getattr(value, "device", None),):
            return super().to(*args, **kwargs)
        return self
