"""Comparisons on the workers of a cluster: one that stands, and one that the command starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from distributed import LocalCluster
from small_plan import new_plan, write
from toy_tasks import Note

import kd_lightning
from kd_lightning.__main__ import main
from kd_lightning.compare.messages import Done, Job, Message, ReportProgress
from kd_lightning.compare.plan.artifacts import RESULT
from kd_lightning.compare.run import engines
from kd_lightning.compare.run.engines import MARKS, open_engine
from kd_lightning.core.errors import UsageError

SLURM = "{class_path: SLURMCluster, init_args: {cores: 1, memory: 1GB, interface: lo}}"
pytestmark = pytest.mark.xdist_group("engines")


class Loader(NamedTuple):
    """Iterates over a loader with workers, and tells what torch's settings are in the thread of a job."""

    def __call__(self, report_progress: ReportProgress) -> dict[str, Any]:
        import torch
        from torch.utils.data import DataLoader

        total = sum(int(batch.sum()) for batch in DataLoader(range(32), batch_size=4, num_workers=2))
        return {"total": total, "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled()}


def ignore(name: str, message: Message) -> None:
    pass


@contextmanager
def workers_of(address: str, count: int, *options: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers that join a scheduler over the loopback device, as a user starts them on other machines."""
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", "--nthreads", "1"]
    with ExitStack() as stack:
        found: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            process = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            found.append(process)
        yield found


@pytest.fixture
def standing() -> Iterator[LocalCluster]:
    """A scheduler without workers."""
    with LocalCluster(
        n_workers=0, scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    ) as cluster:
        yield cluster


@pytest.mark.slow  # two clusters
def test_workers_of_other_clusters_join_and_one_dies(
    standing: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "NEEDED_BY_ALL", ())
    said: list[str] = []
    with workers_of(standing.scheduler_address, 2, "--no-nanny") as processes:
        with open_engine(2, standing.scheduler_address, None, tmp_path, said.append) as engine:
            jobs = [Job(str(number), Note(str(number), tmp_path / "notes", 0.3)) for number in range(6)]

            def on_message(name: str, message: Message) -> None:
                if message == Done({"of": "1"}):
                    processes[0].kill()

            outcomes = engine.run(jobs, on_message)
        assert all(outcome == Done({"of": name}) for name, outcome in outcomes.items())
        assert said == [f"waiting for a worker of {standing.scheduler_address}"]
        assert not (tmp_path / MARKS).exists()


def test_a_job_that_nobody_waits_for_ends(standing: LocalCluster, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engines, "NEEDED_BY_ALL", ())
    standing.scale(0)
    with workers_of(standing.scheduler_address, 1, "--no-nanny"):

        def interrupt(name: str, message: Message) -> None:
            raise KeyboardInterrupt

        for attempt in (1, 2):
            with (
                pytest.raises(KeyboardInterrupt),
                open_engine(2, standing.scheduler_address, None, tmp_path, print) as engine,
            ):
                engine.run([Job("endless", Endless(tmp_path / f"ended-{attempt}"))], interrupt)
        with open_engine(2, standing.scheduler_address, None, tmp_path, print) as engine:
            assert engine.run([Job("next", Note("next", tmp_path / "notes"))], ignore) == {"next": Done({"of": "next"})}
    assert (tmp_path / "ended-1").exists()
    assert (tmp_path / "ended-2").exists()


class Endless(NamedTuple):
    path: Path

    def __call__(self, report_progress: ReportProgress) -> None:
        import time

        try:
            while True:
                time.sleep(0.05)
                report_progress(0.5)
        finally:
            self.path.touch()


@pytest.mark.slow
def test_a_worker_that_cannot_do_the_runs_is_refused(standing: LocalCluster, tmp_path: Path, monkeypatch) -> None:
    address = standing.scheduler_address

    def refusal() -> str:
        with pytest.raises(UsageError) as error, open_engine(2, address, None, tmp_path, lambda line: None):
            pass
        assert "\n" not in str(error.value)
        return str(error.value)

    with workers_of(address, 1, "--nthreads", "3"):
        assert "runs several jobs at once" in refusal()
        assert "start it with --nthreads 1" in refusal()


@pytest.mark.slow
def test_other_versions_of_the_package_are_refused(standing: LocalCluster, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engines, "NEEDED_BY_ALL", ())
    monkeypatch.setattr(engines, "__version__", "9.9")
    with workers_of(standing.scheduler_address, 1):
        with pytest.raises(UsageError) as error, open_engine(2, standing.scheduler_address, None, tmp_path, print):
            pass
        assert f"has kd_lightning {kd_lightning.__version__}, and this process 9.9" in str(error.value)
        monkeypatch.setattr(engines, "NEEDED_BY_ALL", ("kd_lightning.no_such_module",))
        with pytest.raises(UsageError) as error, open_engine(2, standing.scheduler_address, None, tmp_path, print):
            pass
        assert "cannot load kd_lightning (No module named 'kd_lightning.no_such_module')" in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a cluster that cannot be built
@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        (["--scheduler", "tcp://127.0.0.1:1"], "", "--scheduler tcp://127.0.0.1:1: no dask scheduler answers there"),
        (["--scheduler", "nonsense://x"], "", "--scheduler nonsense://x: no dask scheduler answers there"),
        (["--scheduler", "tcp://127.0.0.1:1", "--cluster", "c.yaml"], "", "name two clusters: leave one out"),
        (["--cluster", "no.yaml"], "", "no.yaml: cannot be read"),
        (["--cluster", "c.yaml"], "class: SLURMCluster", "there is no such key as 'class'; did you mean 'class_path'?"),
        (["--cluster", "c.yaml"], "jobs: 2", "class_path is None: name a cluster, such as SLURMCluster"),
        (["--cluster", "c.yaml"], "{class_path: SLURMCluster, jobs: 0}", "jobs is 0 and not a whole number above 0"),
        (["--cluster", "c.yaml"], "{class_path: SLURMCluster, init_args: [1]}", "init_args is [1] and not a mapping"),
        (
            ["--cluster", "c.yaml"],
            "class_path: SLRUMCluster",
            "there is no 'SLRUMCluster'; did you mean 'SLURMCluster'",
        ),
        (["--cluster", "c.yaml"], "class_path: no_such.Cluster", "'no_such.Cluster' needs no_such: install it"),
        (
            ["--cluster", "c.yaml"],
            "class_path: SLURMCluster",
            "SLURMCluster cannot be started: You must specify how much",
        ),
    ],
)
def test_a_mistake_costs_one_line(
    options: list[str], content: str, message: str, tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = str(write(tmp_path, new_plan()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "CONNECT_SECONDS", 0.5)
    Path("c.yaml").write_text(content)
    assert main(["compare", "--config", plan, "--root", "runs", *options]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert message in line
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.slow
def test_a_queue_that_takes_no_jobs_costs_one_line(tmp_path: Path) -> None:
    plan = write(tmp_path, new_plan())
    (tmp_path / "c.yaml").write_text(SLURM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "kd_lightning", "compare", "--config", str(plan), "--cluster", "c.yaml"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    reason = "SLURMCluster cannot start its jobs: [Errno 2] No such file or directory: 'sbatch'"
    assert (ended.returncode, ended.stderr) == (2, f"kd-lightning: c.yaml: {reason}\n")


def results(root: Path) -> dict[str, dict[str, Any]]:
    """The stored results, without times."""
    found = {str(path.parent.relative_to(root)): json.loads(path.read_text()) for path in root.rglob(RESULT)}
    times = ("seconds", "cpu_seconds", "finished_at", "sha256", "digest")
    return {name: {key: value for key, value in each.items() if key not in times} for name, each in found.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A plan, and the results of its runs in this process."""
    folder = tmp_path_factory.mktemp("alone")
    plan = write(folder, new_plan())
    assert main(["compare", "--config", str(plan), "--root", str(folder / "runs"), "--processes", "0"]) == 0
    return plan, results(folder / "runs")


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(alone, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan, expected = alone
    assert main(["compare", "--config", str(plan), "--root", str(tmp_path / "runs")]) == 0
    assert results(tmp_path / "runs") == expected
    printed = capfd.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert re.fullmatch(r"6 runs to do, 2 in parallel, in .*: starting", lines[0])
    assert re.fullmatch(r"Expected to take \d+ (s|min) on this machine", lines[1])
    started = [line for line in lines if line.endswith(": started")]
    assert len(started) == len(expected)
    assert all("/teacher/" in line for line in started[:2])


@pytest.mark.slow
def test_a_loader_has_workers_in_a_job(tmp_path: Path) -> None:
    with open_engine(1, None, None, tmp_path, print) as engine:
        outcomes = engine.run([Job("loader", Loader())], ignore)
    assert outcomes["loader"] == Done({"total": sum(range(32)), "threads": 1, "grad": True})


@pytest.mark.slow
def test_a_cluster_that_stands_gives_the_numbers_of_one_process(
    standing: LocalCluster, alone, tmp_path: Path, monkeypatch
) -> None:
    plan, expected = alone
    monkeypatch.chdir(tmp_path)
    with workers_of(standing.scheduler_address, 2, "--no-nanny", "--memory-limit", "0"):
        options = ["--root", "runs", "--scheduler", standing.scheduler_address]
        assert main(["compare", "--config", str(plan), *options]) == 0
    assert results(tmp_path / "runs") == expected
    assert (tmp_path / "runs/digits/both/seed-3/log.txt").is_file()


@pytest.mark.slow
def test_jobs_of_a_queue_give_the_numbers_of_one_process(alone, tmp_path: Path, monkeypatch) -> None:
    plan, expected = alone
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    arguments = {"cores": 1, "memory": "2GB", "scheduler_options": {"host": "127.0.0.1"}}
    content = {"class_path": "toy_queue.ShellCluster", "init_args": arguments, "jobs": 2}
    Path("queue.yaml").write_text(yaml.safe_dump(content))
    assert main(["compare", "--config", str(plan), "--root", "runs", "--cluster", "queue.yaml"]) == 0
    assert results(tmp_path / "runs") == expected
