"""Real runs through the real command, in this process: six steps each."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from small_plan import network, new_plan, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_lightning.__main__ import main
from kd_lightning.cli.engine import build
from kd_lightning.compare.plan.artifacts import LOG
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.run import training as compare_training
from kd_lightning.compare.run.training import Training
from kd_lightning.core.hashing import weights_hash

# Lightning's command line uses what jsonargparse has renamed
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.xdist_group("a comparison"),  # whose runs are made once
]


class Comparison(NamedTuple):
    folder: Path
    root: Path
    code: int
    printed: str

    def result(self, variant: str, seed: int) -> dict[str, Any]:
        return json.loads((self.root / f"digits/{variant}/seed-{seed}/result.json").read_text())


BROKEN = {"model": {"init_args": {"student": network(8) | {"class_path": "kd_lightning.networks.MPL"}}}}


def broken_plan() -> dict[str, Any]:
    """One variant cannot be built, and so another one's teacher is missing; one stores its checkpoints elsewhere."""
    plan = new_plan()
    own = {"trainer": {"callbacks": [{"class_path": "ModelCheckpoint"}]}}
    plan["groups"]["digits"]["variants"] |= {
        "wrong": {"config": "teacher.yaml", "overrides": BROKEN},
        "orphan": {"config": "distilled.yaml", "teacher": "wrong"},
        "own": {"config": "teacher.yaml", "overrides": own},
        "taught": {"config": "distilled.yaml", "teacher": "own"},
    }
    return plan


def compare(folder: Path, plan: dict[str, Any], *options: str) -> int:
    path = write(folder, plan)
    return main(["compare", "--config", str(path), "--root", str(folder / "runs"), "--processes", "0", *options])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("comparison")
    with redirect_stdout(io.StringIO()) as printed:
        code = compare(folder, broken_plan())
    return Comparison(folder, folder / "runs", code, printed.getvalue())


def test_a_failure_is_reported_and_the_others_go_on(comparison: Comparison) -> None:
    assert comparison.code == 1
    for variant in ("teacher", "alone", "both", "own", "taught"):
        assert all((comparison.root / f"digits/{variant}/seed-{seed}/result.json").is_file() for seed in (3, 4))
    table = (comparison.root / "table.md").read_text()
    assert "digits/wrong/seed-3: " in table
    assert "MPL" in table
    # 2,352 inputs, 8 hidden, 10 classes: 2352 x 8 + 8 + 8 x 10 + 10 parameters, two FLOPs for each of 2360 x 8 + 8 x 10
    assert "| MLP | 18,914 | " in table
    assert "| 37,792 | " in table
    assert "digits/orphan/seed-4: not run, because its teacher failed (digits/wrong/seed-4)" in table
    assert "Traceback" in (comparison.root / "digits/wrong/seed-3/error.txt").read_text()
    assert not (comparison.root / "digits/orphan").exists()
    assert re.search(r"(?m)^digits/wrong: no estimate of its duration: model\.student: .*MPL", comparison.printed)
    assert re.search(r"Expected to take \d+ (s|min) or more on this machine", comparison.printed)
    assert "digits/both: no estimate" not in comparison.printed, "its teacher's file is not needed for one"


def test_a_run_with_a_model_checkpoint_of_its_own_is_as_any_other(comparison: Comparison) -> None:
    for pair in (("teacher", "own"), ("both", "taught")):
        first, second = (comparison.root / f"digits/{variant}/seed-3/last.ckpt" for variant in pair)
        states = [torch.load(path, weights_only=True)["state_dict"] for path in (first, second)]
        assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
        assert comparison.result(pair[0], 3)["accuracy"] == comparison.result(pair[1], 3)["accuracy"]


def test_a_run_is_measured_at_its_last_step(comparison: Comparison) -> None:
    run, teacher = comparison.result("both", 3), comparison.root / "digits/teacher/seed-3/test.npz"
    with np.load(comparison.root / "digits/both/seed-3/test.npz") as saved:
        logits, target = saved["logits"], saved["target"]
    assert logits.shape == (10_000, 10)
    assert logits.dtype == np.float32
    assert run["accuracy"] == pytest.approx((logits.argmax(1) == target).mean())
    assert run["errors"] == (logits.argmax(1) != target).sum()
    with np.load(teacher) as saved:
        assert run["agreement"] == pytest.approx((logits.argmax(1) == saved["logits"].argmax(1)).mean())
    assert run["steps"] == 6
    assert [point["step"] for point in run["curve"]] == [3, 6]
    assert run["train_images"] == 50
    cli = build(["--config", str(comparison.root / "digits/both/seed-3/config.yaml")])
    checkpoint = torch.load(comparison.root / "digits/both/seed-3/last.ckpt", weights_only=True)
    cli.model.load_state_dict(checkpoint["state_dict"])
    cli.model.eval()
    cli.datamodule.setup("test")
    x, *_ = next(iter(cli.datamodule.test_dataloader()))
    with torch.no_grad():
        again = cli.model(x)
    assert torch.allclose(again, torch.from_numpy(logits[: len(x)]), atol=1e-5)


def test_a_student_starts_the_same_with_and_without_its_teacher(comparison: Comparison) -> None:
    for seed in (3, 4):
        assert comparison.result("alone", seed)["start"] == comparison.result("both", seed)["start"]
    assert comparison.result("alone", 3)["start"] != comparison.result("alone", 4)["start"]
    students = [
        build(["--config", str(comparison.root / f"digits/{variant}/seed-3/compare.yaml")])
        for variant in ("alone", "both")
    ]
    assert len({weights_hash(cli.model.student) for cli in students}) == 1
    alone, both = (list(cli.datamodule.train_dataloader()) for cli in students)
    assert all(torch.equal(first[2], second[2]) for first, second in zip(alone, both, strict=True))


def test_tensorboard_has_the_same_tags_in_every_run_and_in_every_variant(comparison: Comparison) -> None:
    tags: dict[str, set[str]] = {}
    for variant in ("teacher", "alone", "both"):
        events = EventAccumulator(str(comparison.root / f"digits/{variant}/seed-3")).Reload()
        tags[variant] = set(events.Tags()["scalars"])
        assert {"train/task", "val/acc", "val/nll", "test/acc", "test/nll"} <= tags[variant]
        [test] = events.Scalars("test/acc")
        assert (test.step, test.value) == (6, pytest.approx(comparison.result(variant, 3)["accuracy"]))
        means = EventAccumulator(str(comparison.root / f"tensorboard/digits/{variant}")).Reload()
        assert tags[variant] - {"epoch"} <= set(means.Tags()["scalars"])
        [mean] = means.Scalars("test/acc")
        accuracies = [comparison.result(variant, seed)["accuracy"] for seed in (3, 4)]
        assert (mean.step, mean.value) == (6, pytest.approx(sum(accuracies) / 2))
    assert tags["both"] - tags["alone"] == {"train/kd", "temperature/kd"}
    assert not (comparison.root / "tensorboard/digits/wrong").exists()


def test_only_missing_or_changed_runs_are_run(comparison: Comparison) -> None:
    folder, root = comparison.folder, comparison.root
    plan = broken_plan()
    del plan["groups"]["digits"]["variants"]["wrong"], plan["groups"]["digits"]["variants"]["orphan"]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("result.json")}
    assert len(before) == 10
    assert compare(folder, plan) == 0, "all is finished, and nothing is run"
    plan["groups"]["digits"]["variants"]["teacher"]["overrides"] = {
        "model": {"init_args": {"student": {"init_args": {"hidden": [16]}}}}
    }
    plan["groups"]["digits"]["variants"]["both"]["overrides"] = {
        "model": {"init_args": {"teacher": {"init_args": {"network": {"init_args": {"hidden": [16]}}}}}}
    }
    assert compare(folder, plan, "--report-only") == 1, "what is missing is not run"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("result.json")} == before
    assert "not finished" in (root / "table.md").read_text()
    assert compare(folder, plan) == 0
    after = {path: path.stat().st_mtime_ns for path in root.rglob("result.json")}
    changed = {str(path.relative_to(root / "digits").parts[0]) for path in after if after[path] != before[path]}
    assert changed == {"teacher", "both"}


def test_a_run_that_is_killed_before_its_first_step_starts_over(tmp_path: Path, monkeypatch) -> None:
    """Its directory has its log from the start, and is still known for a run's."""
    training = Training(read_plan(write(tmp_path, new_plan())).runs[0], tmp_path / "runs")
    monkeypatch.setattr(compare_training, "without_unknown_seed", interrupt)
    for _ in range(2):  # the second refuses nothing
        with pytest.raises(KeyboardInterrupt):
            training(lambda fraction: None)
    assert (training.root / training.run.name / LOG).exists()


def interrupt(config: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    run = read_plan(write(tmp_path, new_plan())).runs[0]
    precious = tmp_path / "runs" / run.name / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else"):
        Training(run, tmp_path / "runs")(lambda fraction: None)
    assert precious.read_text() == "years of work"
