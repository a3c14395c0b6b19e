"""Knowledge distillation for PyTorch Lightning: a small student learns with the help of a large teacher."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_lightning.core.activations import record_activations, tap
    from kd_lightning.core.batch import Batch
    from kd_lightning.core.errors import UsageError
    from kd_lightning.core.expected_messages import hide_expected_messages
    from kd_lightning.core.freezing import exclude_from_state_dict, freeze
    from kd_lightning.core.learner import Learner
    from kd_lightning.core.term import Term
    from kd_lightning.schemes import Classifier, OfflineDistiller
    from kd_lightning.weights.loading import load_student, load_teacher

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Classifier",
    "Learner",
    "OfflineDistiller",
    "Term",
    "UsageError",
    "exclude_from_state_dict",
    "freeze",
    "hide_expected_messages",
    "load_student",
    "load_teacher",
    "record_activations",
    "tap",
]

_HOMES = {
    "Batch": "core.batch",
    "Classifier": "schemes",
    "Learner": "core.learner",
    "OfflineDistiller": "schemes",
    "Term": "core.term",
    "UsageError": "core.errors",
    "freeze": "core.freezing",
    "exclude_from_state_dict": "core.freezing",
    "hide_expected_messages": "core.expected_messages",
    "load_student": "weights.loading",
    "load_teacher": "weights.loading",
    "record_activations": "core.activations",
    "tap": "core.activations",
}


def __getattr__(name: str) -> Any:  # torch and lightning load with the first name that needs them
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
