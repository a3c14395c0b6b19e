"""Knowledge distillation for PyTorch Lightning: a small student learns with the help of a large teacher."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_lightning.activations import record_activations, tap
    from kd_lightning.core.errors import UsageError
    from kd_lightning.learner import Batch, Learner
    from kd_lightning.networks import freeze, leave_out, load_student, load_teacher
    from kd_lightning.schemes import Classifier, OfflineDistiller
    from kd_lightning.terms import Term

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Classifier",
    "Learner",
    "OfflineDistiller",
    "Term",
    "UsageError",
    "freeze",
    "leave_out",
    "load_student",
    "load_teacher",
    "record_activations",
    "tap",
]

_HOMES = {
    "Batch": "learner",
    "Classifier": "schemes",
    "Learner": "learner",
    "OfflineDistiller": "schemes",
    "Term": "terms",
    "UsageError": "core.errors",
    "freeze": "networks",
    "leave_out": "networks",
    "load_student": "networks",
    "load_teacher": "networks",
    "record_activations": "activations",
    "tap": "activations",
}


def __getattr__(name: str) -> Any:  # torch and lightning load with the first name that needs them
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
