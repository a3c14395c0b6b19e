"""The order of jobs, and what is known of those that fail, on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from small_plan import new_plan, write
from toy_tasks import Leave, Note, Raise

from kd_lightning.compare.command import job_of
from kd_lightning.compare.messages import Done, Engine, Failed, Job, Message, Progress
from kd_lightning.compare.plan.order import critical_path, longest_chain_first
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Run
from kd_lightning.compare.run.attempt import last_line
from kd_lightning.compare.run.dask_engine import DaskEngine
from kd_lightning.compare.run.inline import InlineEngine

SECONDS = {"teacher": 9.0, "alone": 5.0, "both": 2.0}
pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a cluster of two threads of this process, whose jobs take turns."""
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(params=["inline", "dask"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    marks = tmp_path / "marks"
    marks.mkdir()
    return InlineEngine(marks) if request.param == "inline" else DaskEngine(request.getfixturevalue("client"), 2, marks)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return read_plan(write(tmp_path, new_plan())).runs


def jobs_of(runs: list[Run], notes: Path, fails: set[str] = frozenset()) -> list[Job]:
    """Jobs that note their names, in the order of the comparison."""
    found = [job_of(run, runs, Path(), False) for run in longest_chain_first(runs, seconds_of(runs))]
    return [Job(job.name, Raise() if job.name in fails else Note(job.name, notes), job.needs) for job in found]


def seconds_of(runs: list[Run]) -> dict[Run, float]:
    return {run: SECONDS[run.variant.name] for run in runs}


def run_all(engine: Engine, jobs: list[Job]) -> tuple[dict[str, Any], list[tuple[str, Message]]]:
    told: list[tuple[str, Message]] = []
    return engine.run(jobs, lambda name, message: told.append((name, message))), told


def test_everything_is_run_once_and_teachers_first(engine: Engine, runs: list[Run], tmp_path: Path) -> None:
    outcomes, told = run_all(engine, jobs_of(runs, tmp_path / "notes"))
    started = (tmp_path / "notes").read_text().split()
    assert sorted(started) == sorted(run.name for run in runs)
    assert outcomes == {run.name: Done({"of": run.name}) for run in runs}
    for seed in (3, 4):
        assert started.index(f"digits/teacher/seed-{seed}") < started.index(f"digits/both/seed-{seed}")
    for run in runs:
        messages = [message for name, message in told if name == run.name]
        assert messages[-1] == outcomes[run.name]
        assert set(messages[:-1]) <= {Progress(0.0)}
    assert not list((tmp_path / "marks").iterdir())


def test_the_longest_chain_is_first(runs: list[Run]) -> None:
    seconds = seconds_of(runs)
    names = [run.variant.name for run in longest_chain_first(runs[::-1], seconds)]
    assert names == ["teacher", "teacher", "alone", "alone", "both", "both"]
    assert critical_path(runs[0], runs, seconds) == 11


def test_a_failure_stops_its_students_alone(engine: Engine, runs: list[Run], tmp_path: Path) -> None:
    jobs = jobs_of(runs, tmp_path / "notes", fails={"digits/teacher/seed-3", "digits/alone/seed-4"})
    outcomes, _ = run_all(engine, jobs)
    failed = outcomes["digits/teacher/seed-3"]
    assert failed.reason.startswith("ValueError: two lines (")
    assert failed.details.startswith("Traceback")
    reason = "not run, because its teacher failed (digits/teacher/seed-3)"
    assert outcomes["digits/both/seed-3"] == Failed(reason, reason)
    started = (tmp_path / "notes").read_text().split()
    assert "digits/both/seed-3" not in started
    assert isinstance(outcomes["digits/both/seed-4"], Done)
    assert isinstance(outcomes["digits/alone/seed-3"], Done)


def test_a_job_that_leaves_python_has_failed(engine: Engine) -> None:
    outcomes, _ = run_all(engine, [Job("leaves", Leave())])
    assert outcomes["leaves"].reason.startswith("SystemExit: enough")


def test_teachers_that_were_finished_before_are_not_waited_for(runs: list[Run], tmp_path: Path) -> None:
    students = [run for run in runs if run.teacher]
    assert [job.needs for job in jobs_of(students, tmp_path)] == [{}, {}]
    assert [job_of(run, runs, Path(), True).needs for run in students] == [
        {f"digits/teacher/seed-{seed}": "its teacher"} for seed in (3, 4)
    ]


def test_workers_need_the_files_of_the_command(client: Client, tmp_path: Path) -> None:
    engine = DaskEngine(client, 2, tmp_path / "elsewhere")
    [missing] = engine.run([Job("a", Raise())], lambda name, message: None).values()
    assert isinstance(missing, Failed)
    assert "elsewhere is not there on " in missing.reason


def test_the_last_line_of_a_log_is_the_last_with_text(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_line(None) == last_line(log) == ""
    log.write_bytes(b"\xff\n" * 4000 + b"  CUDA error \n\n")
    assert last_line(log) == "CUDA error"
    log.write_bytes(b"\n" * 5000)
    assert last_line(log) == ""
