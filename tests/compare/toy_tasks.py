"""Tasks for engines that load no torch; as a script, a command that waits for one of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from kd_lightning.compare.messages import Job, ReportProgress
from kd_lightning.compare.run.output import output_to


class Note(NamedTuple):
    """Writes its name into a file that all processes share, and returns what it notes."""

    name: str
    path: Path
    seconds: float = 0.0

    def __call__(self, report_progress: ReportProgress) -> dict[str, str]:
        with self.path.open("a") as notes:
            notes.write(f"{self.name}\n")
        time.sleep(self.seconds)
        return {"of": self.name}


class Raise(NamedTuple):
    def __call__(self, report_progress: ReportProgress) -> None:
        raise ValueError("two\n  lines")


class Leave(NamedTuple):
    def __call__(self, report_progress: ReportProgress) -> None:
        sys.exit("enough")


class Die(NamedTuple):
    """Ends its process, as often as it may."""

    path: Path
    times: int
    code: int | None = None

    def __call__(self, report_progress: ReportProgress) -> str:
        died = len(self.path.read_text()) if self.path.exists() else 0
        if died == self.times:
            return f"after {died} deaths"
        self.path.write_text("x" * (died + 1))
        report_progress(0.5)
        time.sleep(0.1)  # messages are sent every few milliseconds
        if self.code is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            with output_to(self.path.with_suffix(".log")):
                print("a line\nMemoryError: of the driver\n", file=sys.stderr, flush=True)
                os._exit(self.code)
        return "not reached"


class Facts(NamedTuple):
    """What is known in a worker."""

    def __call__(self, report_progress: ReportProgress) -> dict[str, Any]:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        child.start()
        child.join()
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TMPDIR")
        return {name: os.environ.get(name) for name in names} | {"child": child.exitcode, "folder": str(Path.cwd())}


class Busy(NamedTuple):
    """Computes for a minute and sends nothing meanwhile; a process of its own sleeps beside it, if it has one."""

    has_child: bool

    def __call__(self, report_progress: ReportProgress) -> None:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        if self.has_child:
            child.start()
        os.write(1, f"{os.getpid()} {child.pid or ''}\n".encode())  # at once: another process writes there as well
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(10_000))


def main(root: Path, has_child: bool) -> int:
    from kd_lightning.cli.errors import report_errors
    from kd_lightning.compare.run import engines

    engines.NEEDED_BY_ALL = ()

    def command() -> int:
        with engines.open_engine(2, None, None, root, print) as engine:
            engine.run([Job("busy", Busy(has_child)), Job("as well", Busy(False))], lambda name, message: None)
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), bool(sys.argv[2:])))
