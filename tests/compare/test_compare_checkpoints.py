"""Runs that begin with what other runs left, and runs of several networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_plan import network, new_plan, write

from kd_lightning.__main__ import main
from kd_lightning.cli.engine import build
from kd_lightning.compare.plan.plan_file import read_plan

# Lightning's command line uses what jsonargparse has renamed
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

PEERS: dict[str, Any] = {
    "class_path": "MutualLearning",
    "init_args": {
        "student": {
            "class_path": "kd_lightning.networks.load_student",
            "init_args": {"network": network(8), "path": "@alone"},
        },
        "peers": [
            {
                "class_path": "kd_lightning.networks.load_student",
                "init_args": {"network": network(8), "path": "@digits/alone+1"},
            }
        ],
        "terms": {
            "task": {"loss": {"class_path": "kd_lightning.losses.TaskLoss"}, "teacher": None},
            "mutual": {"loss": {"class_path": "kd_lightning.losses.KDLoss"}},
        },
    },
}


def plan_with_peers(**variant: Any) -> dict[str, Any]:
    plan = new_plan()
    variants = plan["groups"]["digits"]["variants"]
    del variants["teacher"], variants["both"]
    variants["mean"] = {"config": "alone.yaml", "overrides": {"model": PEERS}, "evaluate": "mean"} | variant
    return plan


def test_a_configuration_names_the_checkpoints_of_other_runs(tmp_path: Path) -> None:
    alone, mean = read_plan(write(tmp_path, plan_with_peers())).variants
    first, second = mean.runs
    assert first.needs == [alone.runs[0], alone.runs[1]]
    assert second.needs == [alone.runs[1], alone.runs[0]]  # the one after the last is the first
    model = first.placed(tmp_path)["model"]["init_args"]
    assert model["student"]["init_args"]["path"] == str(tmp_path / "digits/alone/seed-3/last.ckpt")
    assert model["peers"][0]["init_args"]["path"] == str(tmp_path / "digits/alone/seed-4/last.ckpt")


def test_a_digest_changes_with_the_files_that_a_run_begins_with_and_with_what_is_measured(tmp_path: Path) -> None:
    def digest(content: bytes, **variant: Any) -> str:
        run = read_plan(write(tmp_path, plan_with_peers(**variant))).variants[1].runs[0]
        for seed in (3, 4):
            path = tmp_path / f"digits/alone/seed-{seed}/last.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return run.digest(tmp_path)

    assert digest(b"weights") == digest(b"weights")
    assert len({digest(b"weights"), digest(b"others"), digest(b"weights", evaluate="student")}) == 3


def test_a_checkpoint_of_no_variant_gets_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = plan_with_peers()
    plan["groups"]["digits"]["variants"]["mean"]["overrides"] = {"trainer": {"logger": "@digits/alnoe"}}
    assert main(["compare", "--config", str(write(tmp_path, plan))]) == 2
    assert "no run to take a checkpoint from 'digits/alnoe'; did you mean" in capfd.readouterr().err


@pytest.mark.slow
def test_the_mean_of_the_networks_or_one_of_them_is_measured(tmp_path: Path) -> None:
    root, plan = tmp_path / "runs", plan_with_peers()
    variants = plan["groups"]["digits"]["variants"]
    variants["wrong"] = variants["mean"] | {"evaluate": "peers.7"}
    assert main(["compare", "--config", str(write(tmp_path, plan)), "--root", str(root), "--processes", "0"]) == 1
    folder = root / "digits/mean/seed-3"
    result = json.loads((folder / "result.json").read_text())
    run = build(["--config", str(folder / "compare.yaml")])
    model: Any = run.model
    model.load_state_dict(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
    model.eval()
    run.datamodule.setup("test")
    right: dict[str, list[np.ndarray]] = {}
    for x, y, _ in run.datamodule.test_dataloader():
        for name, found in model.evaluated_logits(x).items():
            right.setdefault(name, []).append((found.argmax(1) == y).numpy())
    means = [np.concatenate(parts).mean() for parts in right.values()]
    assert list(right) == ["student", "peers.0"]
    assert result["accuracy"] == pytest.approx(sum(means) / 2)
    assert means[0] != means[1]
    written = (root / "digits/wrong/seed-3/error.txt").read_text()
    assert "evaluate='peers.7' is neither mean nor any of student, peers.0" in written
