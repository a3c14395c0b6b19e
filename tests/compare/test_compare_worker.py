from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kd_lightning.compare.messages import Done, Failed, Progress, ReportProgress
from kd_lightning.compare.run.worker import WarmUp, Worker, output_to


class Square:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, report_progress: ReportProgress) -> tuple[int, str | None, int]:
        import torch

        report_progress(0.5)
        return self.number**2, os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()


class Raise:
    def __call__(self, report_progress: ReportProgress) -> None:
        raise ValueError("two\n  lines")


class Die:
    def __call__(self, report_progress: ReportProgress) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_does_tasks_one_after_another_and_outlives_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    worker = Worker()
    try:
        assert os.environ["OMP_NUM_THREADS"] == "2"
        for number in (3, 4):
            worker.start(Square(number))
            assert worker.receive() == Progress(0.5)
            assert worker.receive() == Done((number**2, "1", 1))
        worker.start(Square(6))
        assert worker.result() == Done((36, "1", 1)), "its progress is passed over"
        worker.start(WarmUp(("kd_lightning.no_such_module",)))
        missing = worker.receive()
        assert isinstance(missing, Failed)
        assert "no_such_module" in missing.reason
        worker.start(Raise())
        failed = worker.receive()
        assert isinstance(failed, Failed)
        assert failed.reason == "two lines"
        assert "in __call__" in failed.details
        worker.start(Die())
        died = worker.receive()
        assert isinstance(died, Failed)
        assert "died with exit code -9" in died.reason
        worker.start(Square(5))
        assert worker.receive() == Progress(0.5)
        assert worker.receive() == Done((25, "1", 1))
    finally:
        worker.stop()
    assert not worker.process.is_alive()


def test_all_output_goes_to_a_file_and_then_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with output_to(tmp_path / "log.txt"):
        os.write(1, b"from one\n")
        os.write(2, b"from the other\n")
    os.write(1, b"back\n")
    os.write(2, b"again\n")
    assert (tmp_path / "log.txt").read_text() == "from one\nfrom the other\n"
    assert capfd.readouterr() == ("back\n", "again\n")
