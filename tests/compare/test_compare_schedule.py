"""The order of runs, with workers that only pretend."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from small_plan import new_plan, write

from kd_lightning.compare.messages import Done, Failed, Message
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.schedule import Outcome, Schedule
from kd_lightning.compare.plan.variants import Run

SECONDS = {"teacher": 9.0, "alone": 5.0, "both": 2.0}


class Pretender:
    """Is done with a task as soon as it has it."""

    def __init__(self, fails: set[str], started: list[str]) -> None:
        self.connection, self.theirs = Pipe()
        self.fails, self.started = fails, started

    def start(self, task: Any) -> None:
        self.started.append(task)
        self.theirs.send(Failed("it broke", "it broke") if task in self.fails else Done({"of": task}))

    def receive(self) -> Message:
        return self.connection.recv()


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return read_plan(write(tmp_path, new_plan())).runs


def schedule(runs: list[Run], finished: set[str] = frozenset(), fails: set[str] = frozenset(), workers: int = 2) -> Any:
    started: list[str] = []
    told: list[tuple[str, Message]] = []
    work = Schedule(
        runs,
        {run: SECONDS[run.variant.name] for run in runs},
        lambda run: {"of": "before"} if run.name in finished else None,
        lambda run: run.name,  # pyright: ignore[reportArgumentType]
        lambda run, message: told.append((run.name, message)),
    )
    outcomes = work.run([Pretender(fails, started) for _ in range(workers)])  # pyright: ignore[reportArgumentType]
    return started, {run.name: outcome for run, outcome in outcomes.items()}, told


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_everything_is_run_once_and_teachers_first(runs: list[Run], workers: int) -> None:
    started, outcomes, told = schedule(runs, workers=workers)
    assert sorted(started) == sorted(run.name for run in runs)
    assert outcomes == {run.name: Outcome({"of": run.name}) for run in runs}
    assert [name for name, _ in told] != []
    for seed in (3, 4):
        assert started.index(f"digits/teacher/seed-{seed}") < started.index(f"digits/both/seed-{seed}")


def test_the_longest_chain_is_first(runs: list[Run]) -> None:
    started, *_ = schedule(runs, workers=1)
    assert [name.split("/")[1] for name in started] == ["teacher", "teacher", "alone", "alone", "both", "both"]


def test_a_failure_stops_its_students_alone(runs: list[Run]) -> None:
    started, outcomes, _ = schedule(runs, fails={"digits/teacher/seed-3", "digits/alone/seed-4"})
    assert outcomes["digits/teacher/seed-3"] == Outcome(None, "it broke")
    reason = "not run, because its teacher failed (digits/teacher/seed-3)"
    assert outcomes["digits/both/seed-3"] == Outcome(None, reason)
    assert "digits/both/seed-3" not in started
    assert outcomes["digits/both/seed-4"].result
    assert outcomes["digits/alone/seed-3"].result


def test_finished_runs_are_not_repeated(runs: list[Run]) -> None:
    started, outcomes, _ = schedule(runs, finished={"digits/both/seed-3"})
    assert "digits/both/seed-3" not in started
    assert outcomes["digits/both/seed-3"] == Outcome({"of": "before"})
    assert len(started) == 5


def test_teachers_that_were_finished_before_are_not_waited_for(runs: list[Run]) -> None:
    students = [run for run in runs if run.teacher]
    started, outcomes, _ = schedule(students)
    assert len(started) == len(outcomes) == 2
