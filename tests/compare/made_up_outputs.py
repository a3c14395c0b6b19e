"""Outputs of runs that were never trained: logits, labels and images of three classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.compare.plan.variants import Plan, Run

ROWS, CLASSES = 60, 3
ACCURACIES = {"teacher": 0.95, "alone": 0.6, "both": 0.8}
STATS = {"name": "Net", "parameters": 15562, "bytes": 62856, "flops": 1162944}
NETWORKS: dict[str, Any] = {
    "small": STATS | {"latency_1_ms": 0.2, "latency_64_ms": 2.5},
    "large": STATS | {"name": "Teacher", "parameters": 221962, "latency_1_ms": 0.4, "latency_64_ms": 9.0},
}


def make_up(plan: Plan, root: Path, images: bool = True) -> dict[Run, dict[str, Any]]:
    """Writes the outputs of all runs of a plan, and the images of its groups; the results."""
    for group in plan.groups if images else ():
        (root / group.name).mkdir(parents=True, exist_ok=True)
        pixels = np.arange(ROWS * 16, dtype=np.uint8).reshape(ROWS, 1, 4, 4)
        np.savez(root / group.name / "test_images.npz", images=pixels, target=labels(), key="")
    return {run: _result(run, root) for run in plan.runs}


def labels() -> Any:
    return np.arange(ROWS) % CLASSES


def _result(run: Run, root: Path) -> dict[str, Any]:
    right = round(ROWS * ACCURACIES.get(run.variant.name, 0.7)) - run.seed % 2
    predicted = np.where(np.arange(ROWS) < right, labels(), (labels() + 1) % CLASSES)
    logits = 2.0 * np.eye(CLASSES, dtype=np.float32)[predicted]
    (root / run.name).mkdir(parents=True, exist_ok=True)
    np.savez(root / run.name / "test.npz", logits=logits, target=labels())
    accuracy, taught = right / ROWS, run.teacher is not None
    return {
        "network": "large" if run.variant.name == "teacher" else "small",
        "start": f"weights {run.seed}",
        "steps": 20,
        "train_images": 100,
        "test_images": ROWS,
        "accuracy": accuracy,
        "errors": ROWS - right,
        "chance": 1 / CLASSES,
        "train_accuracy": 1.0,
        "nll": 1 - accuracy,
        "calibration_error": 0.01 * run.seed,
        "agreement": 0.9 if taught else None,
        "divergence": 0.2 if taught else None,
        "metrics": {"accuracy": accuracy, "nll": 1 - accuracy},
        "seconds": 4.0,
        "finished_at": "2026-03-01 10:00 UTC",
        "curve": [{"step": step, "accuracy": accuracy - 1 / step, "nll": 1.0} for step in (10, 20)],
    }
