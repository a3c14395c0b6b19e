"""Two ranks of a test's own module, each a process on this machine."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

two_processes = pytest.mark.xdist_group("two processes")
"""One worker makes all tests of two processes: the runs of each file once, and no two pairs at the same time."""
START = "forkserver"
"""Forks processes from one that has imported Lightning and computed nothing: imports take longer than a small run."""
SERVER = multiprocessing.get_context(START)
SERVER.set_forkserver_preload(["tests.toys"])


def free_port() -> int:
    """A port of this machine that no program listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Ended(NamedTuple):
    """How a rank has ended."""

    code: int | None
    """Its exit code, None if it was still running and had to be killed."""
    output: str


def run_two(module: str, out: Path, *args: str) -> None:
    """Runs ``python -m module out *args`` as rank 0 and rank 1 of two."""
    for rank in end_of_two(module, out, *args):
        assert rank.code == 0, rank.output


def end_of_two(module: str, out: Path, *args: str, patience: float = 300) -> list[Ended]:
    """Runs ``python -m module out *args`` as rank 0 and rank 1 of two.

    Args:
        patience: Seconds after the end of rank 0 at which rank 1 is killed.
    """
    port = free_port()
    ranks = [SERVER.Process(target=_run, args=(rank, port, module, out, args)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank, seconds in zip(ranks, (300, patience), strict=True):
        rank.join(timeout=seconds)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()  # if it is still running
    return [Ended(code, _output(out, number).read_text()) for number, code in enumerate(codes)]


def _output(out: Path, rank: int) -> Path:
    return out / f"output-{rank}.txt"


def _run(rank: int, port: int, module: str, out: Path, args: Sequence[str]) -> None:
    with _output(out, rank).open("w") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "OMP_NUM_THREADS": "1",
    }
    sys.argv = [module, str(out), *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
