"""What runs predicted on their test data, from the outputs that they stored: counts and curves of class labels."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_lightning.compare.plan.artifacts import OUTPUTS, Results
from kd_lightning.compare.plan.variants import Plan, Run

BINS = 15
TEMPERATURES = (1.0, 4.0, 8.0)
SOFTENED_ROWS = 20_000
"""Softened distributions are means over at most this number of rows."""


@dataclass(frozen=True)
class Tested:
    """The predictions of a run on its test data, of class labels."""

    target: NDArray[np.int64]
    """(N,)."""
    predicted: NDArray[np.int64]
    """(N,)."""
    confusion: NDArray[np.int64]
    """(C, C): rows are labels, columns are predictions."""
    reliability: NDArray[np.float64]
    """(3, 15): the number of rows, the sum of their confidences and the number of right ones, by bin of confidence."""
    softened: NDArray[np.float64]
    """(3, C): the probabilities of the most likely class, the second, ..., at each of `TEMPERATURES`; means."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,): where the prediction is the label."""
        return self.predicted == self.target

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(C,): the share of right predictions among the rows of each class; NaN for a class without rows."""
        counts = self.confusion.sum(axis=1)
        shares = np.full(len(counts), np.nan)
        np.divide(self.confusion.diagonal(), counts, out=shares, where=counts > 0)
        return shares


def read_outputs(plan: Plan, results: Results, root: Path) -> dict[Run, Tested]:
    """Read the outputs of all finished runs with class labels; a run whose file is missing or damaged is left out."""
    found: dict[Run, Tested] = {}
    for run in plan.runs:
        if run in results and results[run].get("label_kind", "classes") == "classes":
            tested = _read(root / run.name / OUTPUTS)
            if tested is not None:
                found[run] = tested
    return found


def _read(path: Path) -> Tested | None:
    try:
        with np.load(path) as saved:
            logits, target = saved["logits"], saved["target"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    target = target.argmax(axis=1) if target.ndim == 2 else target
    if logits.ndim != 2 or target.ndim != 1 or len(logits) != len(target) or not len(target):
        return None
    return describe(logits, target.astype(np.int64))


def describe(logits: NDArray[Any], target: NDArray[np.int64]) -> Tested:
    """Count what logits (N, C) predict for labels (N,).

    Example:
        >>> tested = describe(np.array([[2.0, 1.0], [3.0, 1.0]]), np.array([0, 1]))
        >>> tested.confusion.tolist(), tested.class_accuracy.tolist()
        ([[1, 0], [1, 0]], [1.0, 0.0])
    """
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = np.bincount(target * classes + predicted, minlength=classes**2).reshape(classes, classes)
    confidence = softmax(logits).max(axis=1)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    sums = [np.bincount(bins, weights, BINS) for weights in (None, confidence, predicted == target)]
    some = logits[:: -(-len(logits) // SOFTENED_ROWS)]
    softened = [np.sort(softmax(some / temperature), axis=1)[:, ::-1].mean(axis=0) for temperature in TEMPERATURES]
    return Tested(target, predicted, confusion, np.array(sums, np.float64), np.array(softened))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of rows of logits, in float64.

    Example:
        >>> softmax(np.array([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
