"""Worker processes of this machine: what they are given, and what is known of those that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import toy_tasks
from distributed import Client
from toy_tasks import Die, Facts, Note

from kd_lightning.compare.messages import Done, Failed, Job, Message, Progress
from kd_lightning.compare.run.attempt import LIMIT
from kd_lightning.compare.run.dask_engine import DaskEngine
from kd_lightning.compare.run.local_cluster import Deaths, Processes, start_processes, visible_gpus
from kd_lightning.compare.run.output import output_to

pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Client, Deaths]]:
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
        with start_processes(2) as found:
            yield found
    added = os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}
    assert not added, "the environment is as it was"


@pytest.fixture
def engine(cluster: tuple[Client, Deaths], tmp_path: Path) -> DaskEngine:
    marks = tmp_path / "marks"
    marks.mkdir()
    client, deaths = cluster
    return DaskEngine(client, 2, marks, deaths.explain)


def ignore(name: str, message: Message) -> None:
    pass


def test_a_process_has_one_thread_one_gpu_and_may_have_processes_of_its_own(engine: DaskEngine, tmp_path: Path) -> None:
    jobs = [Job("wait", Note("wait", tmp_path / "notes", seconds=0.5)), Job("a", Facts()), Job("b", Facts())]
    found = [outcome.value for name, outcome in engine.run(jobs, ignore).items() if name != "wait"]
    for facts in found:
        assert facts["OMP_NUM_THREADS"] == "1"
        assert facts["CUDA_VISIBLE_DEVICES"] in ("GPU-a", "GPU-b")
        assert Path(facts["TMPDIR"]).name.startswith("kd-compare-")
        assert facts["child"] == 0, "a daemonic process could not start it"
        assert facts["folder"] == str(Path.cwd())


def test_a_dead_process_s_job_is_done_again(engine: DaskEngine, tmp_path: Path) -> None:
    told: list[tuple[str, Message]] = []
    jobs = [
        Job("teacher", Die(tmp_path / "deaths", times=2)),
        *(Job(f"alone-{i}", Note(f"alone-{i}", tmp_path / "notes")) for i in range(5)),
        Job("student", Note("student", tmp_path / "notes"), {"teacher": "its teacher"}),
    ]
    outcomes = engine.run(jobs, lambda name, message: told.append((name, message)))
    assert outcomes["teacher"] == Done("after 2 deaths")
    assert all(isinstance(outcome, Done) for outcome in outcomes.values())
    assert told.count(("teacher", Progress(0.0))) == 3
    assert not list(engine.marks.iterdir())


@pytest.mark.slow  # three processes die; that one does is quick
def test_a_job_whose_process_dies_again_and_again_has_failed_alone(engine: DaskEngine, tmp_path: Path) -> None:
    jobs = [
        Job("killed", Die(tmp_path / "killed", times=99)),
        Job("crashed", Die(tmp_path / "crashed", times=99, code=3), log=tmp_path / "crashed.log"),
        Job("student", Note("student", tmp_path / "notes"), {"killed": "its teacher"}),
        *(Job(f"alone-{i}", Note(f"alone-{i}", tmp_path / "notes")) for i in range(5)),
    ]
    outcomes = engine.run(jobs, ignore)
    killed, crashed = outcomes["killed"], outcomes["crashed"]
    assert isinstance(killed, Failed)
    assert isinstance(crashed, Failed)
    died = f"its process died, {LIMIT} times in a row"
    assert killed.reason == f"{died} (killed by signal 9): check if the machine ran out of memory"
    assert crashed.reason == f"{died} (exited with status 3): MemoryError: of the driver"
    assert outcomes["student"].reason == "not run, because its teacher failed (killed)"
    assert sum(isinstance(outcome, Done) for outcome in outcomes.values()) == 5


def test_gpus_are_found_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia7", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(tmp_path) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert visible_gpus(tmp_path) == ["3", "1"]


@pytest.mark.parametrize(("gpus", "expected"), [([], [None] * 3), (["5"], [None] * 3), (["5", "2"], ["5", "2", "5"])])
def test_each_process_sees_one_of_several_gpus(gpus: list[str], expected: list[str | None]) -> None:
    with Processes("scratch", gpus) as cluster:
        found: list[str | None] = []
        for number in range(3):
            spec = cluster.new_worker_spec()
            cluster.worker_spec |= spec  # its number is taken
            found.append(spec[number]["options"]["env"].get("CUDA_VISIBLE_DEVICES"))
        cluster.worker_spec.clear()
    assert found == expected


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGKILL))],
)
def test_a_command_that_is_stopped_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, toy_tasks.__file__, str(tmp_path / "root"), *(["child"] if number == signal.SIGINT else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for _ in range(2) for pid in process.stdout.readline().split()]
    assert len(pids) == (3 if number == signal.SIGINT else 2)
    start = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, printed = process.communicate()
    if number != signal.SIGKILL:
        assert time.monotonic() - start < 1
        word, code = ("interrupted", 130) if number == signal.SIGINT else ("terminated", 143)
        assert (printed.decode(), process.returncode) == (f"kd-lightning: {word}\n", code)
        assert [path.name for path in tmp_path.iterdir()] == ["root"]
        assert not list((tmp_path / "root").iterdir())
    while any(map(_runs, pids)):
        assert time.monotonic() < start + 10
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_all_output_goes_to_a_file_and_then_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with output_to(tmp_path / "log.txt"):
        os.write(1, b"from one\n")
        os.write(2, b"from the other\n")
    os.write(1, b"back\n")
    os.write(2, b"again\n")
    assert (tmp_path / "log.txt").read_text() == "from one\nfrom the other\n"
    assert capfd.readouterr() == ("back\n", "again\n")
