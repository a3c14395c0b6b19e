"""A fault on one of two processes leaves none of them waiting; a signal stops both at the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.faulty_ranks import FAULT_IN, KINDS, POINTS
from tests.ranks import end_of_two, free_port, two_processes

pytestmark = two_processes

IN_EVERY_RUN = [("error", "backward"), ("hang", "forward")]
FAULTS = [
    pytest.param(kind, point, marks=[] if (kind, point) in IN_EVERY_RUN else pytest.mark.slow)
    for kind in KINDS
    for point in POINTS
    if kind != "ctrl-c"
]


def ours(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("kd-lightning")]


@pytest.mark.parametrize(("kind", "point"), FAULTS)
def test_no_rank_waits_for_one_that_has_failed(kind, point, tmp_path):
    """A hang outlasts the time-out of steps, four seconds, and then is for the launcher to end."""
    patience = 1 if kind == "hang" else 60
    first, second = end_of_two("tests.callbacks.faulty_ranks", tmp_path, kind, point, patience=patience)
    assert first.code == 1
    problem = "did not answer in time" if kind == "hang" else "has ended"
    [line] = ours(first.output)
    assert line.startswith(f"kd-lightning (process 0): stopped, because another process {problem}")
    assert second.code == {"error": 1, "death": -signal.SIGKILL, "hang": None}[kind]
    if kind == "error":
        [line] = ours(second.output)
        assert line.startswith("kd-lightning (process 1): RuntimeError: injected (")
        assert "faulty_ranks.py" in line
    assert "Traceback" not in first.output + second.output
    assert not list(tmp_path.glob("*.ckpt"))


def test_ctrl_c_at_different_steps_stops_all_ranks_at_one(tmp_path):
    first, second = end_of_two("tests.callbacks.faulty_ranks", tmp_path, "ctrl-c", "forward")
    assert (first.code, second.code) == (130, 0), first.output + second.output  # the first one tells the launcher
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == FAULT_IN


CONFIG = """\
model:
  class_path: Classifier
  init_args: {student: {class_path: StudentConvNet}}
data: {class_path: MNISTDataModule, init_args: {batch_size: 16, train_size: 512, val_size: 0}}
trainer:
  max_epochs: 1
  accelerator: cpu
  devices: 2
  strategy: ddp
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: run
  callbacks:
    - {class_path: tests.callbacks.faulty_ranks.Fault, init_args: {kind: KIND, point: POINT}}
    - {class_path: FaultTolerance, init_args: {handles_sigint: true, step_timeout: 4.0}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_ends_with_all_processes_that_it_started(kind, point, tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG.replace("KIND", kind).replace("POINT", point))
    root = Path(__file__).parents[2]
    more = {"PYTHONPATH": str(root), "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kd_lightning", "fit", "--config=run.yaml"]
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment | more, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _, errors = run.communicate(timeout=120)  # all processes have closed the pipe
    assert run.returncode == (130 if kind == "ctrl-c" else 1), errors
    assert "Traceback" not in errors
    lines = ours(errors)
    assert any(line.startswith("kd-lightning: ") for line in lines)
    assert len(lines) == {"error": 2, "death": 1, "hang": 1, "ctrl-c": 2}[kind], errors
