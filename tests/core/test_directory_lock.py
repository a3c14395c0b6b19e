"""One process at a time in a directory, until it ends in whatever way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from kd_lightning.core.directory_lock import NAME, DirectoryLock
from kd_lightning.core.errors import UsageError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="locks and forks"),
    pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning"),
]
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else multiprocessing
HOLD = """
import sys, time
from kd_lightning.core.directory_lock import DirectoryLock
DirectoryLock(sys.argv[1], "a run", "").acquire()
print(flush=True)
time.sleep(60)
"""


def lock(folder: Path) -> DirectoryLock:
    return DirectoryLock(folder, "a run", "name another directory")


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_another_process_is_refused_until_it_is_killed(tmp_path):
    process = holder(tmp_path)
    try:
        message = (
            f"{tmp_path}: process {process.pid} on {socket.gethostname()} has a run there: "
            "wait for its end, or name another directory"
        )
        with pytest.raises(UsageError) as error:
            lock(tmp_path).acquire()
        assert str(error.value) == message
        left = tmp_path / f".last.ckpt.{socket.gethostname()}.{process.pid}"
        left.touch()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock(tmp_path):
            assert not left.exists()
            assert (tmp_path / NAME).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_created_and_removed_if_it_stays_empty(tmp_path):
    with lock(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / NAME).exists()
    assert not (tmp_path / "new" / "run").exists()
    with lock(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "file").touch()
    assert (tmp_path / "new" / "run" / "file").exists()
    (tmp_path / "empty").mkdir()
    with lock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_one_process_may_lock_twice_and_then_releases_last(tmp_path):
    with lock(tmp_path):
        with lock(tmp_path / "."):
            pass
        assert refused(tmp_path)
    assert not refused(tmp_path)


def refused(folder: Path) -> bool:
    """A process of its own tries; `os._exit` tells the outcome."""
    if not (pid := os.fork()):
        try:
            lock(folder).acquire()
        except UsageError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def _work(done: Event) -> None:
    done.wait(60)


def test_a_forked_worker_does_not_hold_it_longer(tmp_path):
    """Such as a loader's, which outlives its parent by seconds."""
    done = FORK.Event()
    with lock(tmp_path):
        worker = FORK.Process(target=_work, args=(done,), daemon=True)
        worker.start()
        assert refused(tmp_path)
    with lock(tmp_path):
        pass
    done.set()
    worker.join()
    assert worker.exitcode == 0


def _lock_again(folder: Path) -> None:
    with lock(folder):
        pass


def test_a_child_of_the_run_passes_and_its_end_does_not_release(tmp_path):
    """`ddp_fork` starts rank 0 from the process that has taken the lock."""
    with lock(tmp_path):
        rank = FORK.Process(target=_lock_again, args=(tmp_path,))
        rank.start()
        rank.join()
        assert rank.exitcode == 0
        assert (tmp_path / NAME).exists()
        assert refused(tmp_path)


def test_other_descriptors_of_the_file_do_not_release_it(tmp_path):
    """As when a program copies the directory."""
    with lock(tmp_path):
        (tmp_path / NAME).read_bytes()
        assert refused(tmp_path)


def test_many_processes_hold_it_one_after_the_other(tmp_path):
    """The file is removed and made again while others wait for it."""
    folder = tmp_path / "run"
    processes = [FORK.Process(target=_enter, args=(folder,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def _enter(folder: Path) -> None:
    entered = 0
    while entered < 20:
        try:
            with lock(folder):
                os.close(os.open(folder / "alone", os.O_CREAT | os.O_EXCL))
                (folder / "alone").unlink()
                entered += 1
        except UsageError:
            time.sleep(0.0005)
