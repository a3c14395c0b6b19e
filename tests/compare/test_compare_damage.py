"""Damaged files of a comparison, and two comparisons at once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_plan import new_plan, write

from kd_lightning.__main__ import main
from kd_lightning.compare.plan.artifacts import NETWORKS, OUTPUTS, RESULT, damage, finished
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.stored import DamagedError, read_result, read_stats, sealed
from kd_lightning.compare.plan.variants import LAST_CHECKPOINT, Plan, Run
from kd_lightning.core.directory_lock import DirectoryLock

STATS = {"name": "MLP", "parameters": 5, "bytes": 20, "flops": None, "latency_1_ms": None, "latency_64_ms": None}


def result(run: Run, root: Path) -> dict[str, Any]:
    metrics = {"accuracy": 0.5, "nll": 1.0}
    return {
        "network": "key",
        "start": "",
        "steps": 6,
        "seconds": 1.5,
        "curve": [{"step": 3} | metrics],
        "label_kind": "classes",
        "monitor": "accuracy",
        "mode": "max",
        "metrics": metrics,
        "test_images": 10,
        "train_images": None,
        "digest": run.digest(root),
    }


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Plan, Path]:
    """A plan, and one finished run of it: its file, the plan and the result's path."""
    plan = read_plan(file := write(tmp_path, new_plan()))
    run, root = plan.runs[0], tmp_path / "runs"
    (root / run.name).mkdir(parents=True)
    for name in (OUTPUTS, LAST_CHECKPOINT):
        (root / run.name / name).touch()
    (root / run.name / RESULT).write_text(json.dumps(sealed(result(run, root)), indent=1))
    (root / NETWORKS).write_text(json.dumps({"key": STATS}))
    return file, plan, root / run.name / RESULT


def replaced(**entries: Any) -> Callable[[Path], None]:
    """Entries replaced, or removed if None, in a file without a hash."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        target = content.get("key", content)
        content.pop("sha256", None)
        target |= entries
        for key in [key for key, value in entries.items() if value is None]:
            del target[key]
        path.write_text(json.dumps(content))

    return change


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "not JSON": lambda path: path.write_text("steps: 6"),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("NaN"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "a directory": directory,
}
RESULT_DAMAGES = DAMAGES | {
    "a missing entry": replaced(metrics=None),
    "a missing digest": replaced(digest=None),
    "NaN": replaced(seconds=float("nan")),
    "a wrong type": replaced(steps="six"),
    "another number": lambda path: path.write_text(path.read_text().replace("0.5", "0.6")),
}
STATS_DAMAGES = DAMAGES | {
    "a missing entry": replaced(parameters=None),
    "a wrong type": replaced(bytes="many"),
    "no costs": lambda path: path.write_text('{"key": 3}'),
}


def report(file: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints on stderr; it reports the finished runs alone."""
    capsys.readouterr()
    assert main(["compare", "--config", str(file), "--root", str(root), "--report-only"]) == 1
    return capsys.readouterr().err


def test_whole_files_are_read(stored, capsys):
    file, plan, path = stored
    root = path.parents[3]
    assert finished(plan.runs[0], root) == result(plan.runs[0], root)
    assert report(file, root, capsys) == ""
    replaced()(path)  # without its hash, as of an earlier version
    assert finished(plan.runs[0], root) == result(plan.runs[0], root)
    assert "MLP" in (root / "table.md").read_text()


@pytest.mark.parametrize("change", RESULT_DAMAGES.values(), ids=RESULT_DAMAGES)
def test_a_damaged_result_is_not_finished(change, stored):
    _, plan, path = stored
    root = path.parents[3]
    change(path)
    assert finished(plan.runs[0], root) is None
    [line] = damage(plan.runs, root)
    assert line.startswith(f"{path}: ")
    assert line.endswith(": the run counts as not finished")
    assert "\n" not in line


@pytest.mark.parametrize("change", STATS_DAMAGES.values(), ids=STATS_DAMAGES)
def test_damaged_costs_are_one_line(change, stored):
    path = stored[2].parents[3] / NETWORKS
    change(path)
    with pytest.raises(DamagedError) as error:
        read_stats(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_the_command_reports_what_is_damaged_and_goes_on(stored, capsys):
    file, _, path = stored
    root = path.parents[3]
    for damaged in (path, root / NETWORKS):
        DAMAGES["half"](damaged)
    first, second = report(file, root, capsys).splitlines()
    assert first == f"kd-lightning: {path}: cannot be read (not JSON): the run counts as not finished"
    assert second.startswith(f"kd-lightning: {root / NETWORKS}: cannot be read (not JSON): ")


def test_a_flipped_bit_of_a_result_is_found_or_without_effect(stored):
    _, _, path = stored
    whole, content, chosen = read_result(path), path.read_bytes(), random.Random(0)
    found = 0
    for place in range(40):
        bit = int((place + chosen.random()) * len(content) * 8 / 40)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            read = read_result(path)
        except DamagedError:
            found += 1
        else:
            assert read == whole, f"bit {bit}"
    assert found >= 30


def test_a_second_comparison_is_refused(stored, capsys):
    file, _, path = stored
    root = path.parents[3]
    root.mkdir(exist_ok=True)
    command = "import sys; from kd_lightning.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", command, "compare", "--config", str(file), "--root", str(root)]
    with DirectoryLock(root, "a comparison", ""):
        second = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"process {os.getpid()} on " in second.stderr
    assert "name another --root" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert path.is_file()
