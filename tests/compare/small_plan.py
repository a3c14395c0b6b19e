"""A small comparison: multi-layer perceptrons, a hundred digits, a few steps."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

DATA = {
    "class_path": "MNISTDataModule",
    "init_args": {"batch_size": 16, "train_size": 50, "val_size": 100, "steps_per_epoch": 6},
}
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "val_check_interval": 3, "log_every_n_steps": 2}


def network(width: int) -> dict[str, Any]:
    return {"class_path": "kd_lightning.networks.MLP", "init_args": {"in_features": 2352, "hidden": [width]}}


FILES: dict[str, dict[str, Any]] = {
    "alone.yaml": {"model": {"class_path": "Classifier", "init_args": {"student": network(8)}}, "data": DATA},
    "teacher.yaml": {"model": {"class_path": "Classifier", "init_args": {"student": network(32)}}, "data": DATA},
    "distilled.yaml": {
        "model": {
            "class_path": "OfflineDistiller",
            "init_args": {
                "student": network(8),
                "teacher": {
                    "class_path": "kd_lightning.networks.load_teacher",
                    "init_args": {"network": network(32), "checkpoint": "named by the comparison"},
                },
                "terms": {
                    "task": {"loss": {"class_path": "kd_lightning.losses.TaskLoss"}, "teacher": None, "weight": 0.5},
                    "kd": {"loss": {"class_path": "kd_lightning.losses.KDLoss"}, "weight": 0.5},
                },
            },
        },
        "data": DATA,
    },
}
PLAN: dict[str, Any] = {
    "title": "Small",
    "overrides": {"trainer": TRAINER | {"enable_progress_bar": False, "enable_model_summary": False}},
    "groups": {
        "digits": {
            "seeds": [3, 4],
            "baseline": "alone",
            "variants": {
                "teacher": {"config": "teacher.yaml"},
                "alone": {"config": "alone.yaml"},
                "both": {"title": "both terms", "config": "distilled.yaml", "teacher": "teacher"},
            },
        },
    },
}


def write(folder: Path, plan: dict[str, Any]) -> Path:
    """Writes the plan and the files that it names; the path of the plan."""
    for name, content in (FILES | {"plan.yaml": plan}).items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "plan.yaml"


def new_plan() -> dict[str, Any]:
    """To be changed and written."""
    return deepcopy(PLAN)
