"""Runs of a plan that were never trained: results and ``metrics.csv`` with curves that are made up."""

from __future__ import annotations

import csv
import random
from math import exp
from pathlib import Path
from typing import Any

from kd_lightning.compare.plan.variants import Plan, Run

STEPS, EVERY = 1500, 50


def make_up(plan: Plan, root: Path) -> dict[Run, dict[str, Any]]:
    """Write the logs of all runs of a plan, and return their results."""
    return {run: _write(run, place, root) for place, run in enumerate(plan.runs)}


def _write(run: Run, place: int, root: Path) -> dict[str, Any]:
    chance, taught, weights = random.Random(place), run.teacher is not None, run.weights is not None
    best = 0.98 if "teacher" in run.variant.name else 0.9 if taught else 0.8
    best += 0.01 * chance.random() + 0.005 * len(run.variant.name) / 10
    rows: list[dict[str, float]] = []
    for step in range(EVERY - 1, STEPS, EVERY) if not weights else ():
        learned = 1 - exp(-step / 300)
        terms = {"train/task": 2.3 - 2 * learned + chance.gauss(0, 0.05)}
        if taught:
            terms |= {"train/kd": 30 * (1 - learned) + 1 + chance.random(), "temperature/kd": 3.0}
        rows.append({"epoch": 0, "step": step, **terms, "train/loss": sum(terms.values())})
        if (step + 1) % 250 == 0:
            accuracy = best * learned + chance.gauss(0, 0.005)
            rows.append({"epoch": 0, "step": step, "val/acc": accuracy, "val/nll": 2.3 * (1.1 - accuracy)})
    rows.append({"epoch": 1, "step": STEPS, "test/acc": best, "test/nll": 2.3 * (1 - best)})
    folder = root / run.name
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
    return {
        "network": "large" if "teacher" in run.variant.name else "small",
        "start": f"weights {run.seed}",
        "steps": 0 if weights else STEPS,
        "train_images": None if weights else 1000,
        "accuracy": best,
        "errors": round(10000 * (1 - best)),
        "train_accuracy": None if weights else 1.0,
        "nll": 2.3 * (1 - best),
        "calibration_error": 0.02,
        "agreement": best if taught else None,
        "divergence": 1 - best if taught else None,
        "seconds": 30.0,
        "metrics": {"accuracy": best, "nll": 2.3 * (1 - best)},
        "curve": [
            {"step": row["step"] + 1, "accuracy": row["val/acc"], "nll": row["val/nll"]}
            for row in rows
            if "val/acc" in row
        ],
    }
