"""The fastest plain torch of a loss's formula: each loss's test file holds that of its loss, in `PLAIN`.

`make bench` times every loss against its plain form, and a test holds their values and gradients equal. A form is what
one would write into a training loop: nothing is checked, nothing is computed in higher precision, and nothing guards
against NaN that has none on ordinary inputs. Forms that several files need are below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shapes = tuple[int, ...] | list[tuple[int, ...]]
Form = Callable[[Any, Any, Any, Any], Tensor]
"""Called with the loss, for its connectors, and with student, teacher and target."""

N = 64
"""Samples of a batch."""
STUDENT, TEACHER = (N, 32, 6, 6), (N, 128, 6, 6)
STUDENTS, TEACHERS = ([(N, width, size, size) for size in (13, 6, 5)] for width in (32, 128))
TWO_TEACHERS = [TEACHER, (N, 64, 6, 6)]
ROWS = (N, 128), (N, 512)
WIDTHS = [32] * 3, [128] * 3


def labels() -> Tensor:
    """Class indices (N,) below 10."""
    return torch.arange(N) * 7 % 10


@dataclass(frozen=True)
class Plain:
    """A loss's plain form, and the inputs that both are timed on: without shapes, logits of 10 and of 100 classes."""

    form: Form
    student: Shapes | None = None
    teacher: Shapes | None = None
    teachers: int = 0
    """For logits: this many teachers, stacked behind the batch."""
    build: Callable[[], nn.Module] | None = None
    """A fresh loss; the class itself, without arguments, if not given."""
    target: Callable[[], Any] = labels


def kd(m, s, t, y, temperature=4.0):
    s, t = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
    return F.kl_div(s, t, reduction="batchmean", log_target=True) * temperature**2


def hint(m, s, t, y):
    return F.mse_loss(m.connector(s), t) / 2


def squared_distances(x):
    products = x @ x.T
    return products.diagonal() + products.diagonal().unsqueeze(1) - 2 * products
