"""Faults on one of two processes: both are to end within 30 seconds, and the resumed run is that of two processes."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.moments import Action, Moment, disk_full, fail, hang, in_a_save, kill, marked
from benchmarks.faults.process import Attach, Ended, Process, Run
from benchmarks.faults.trial import Stage, Truth, Verdict, inspect
from benchmarks.faults.values import Poison
from kd_lightning.callbacks import FaultTolerance
from tests import toys
from tests.ranks import free_port

FAMILIES = ("response", "relation, memory bank", "online", "adversarial", "drop-in")
LIMIT, STEP_TIMEOUT = 30.0, 4.0
"""Seconds within which both processes are to end, and after which one that hangs in a step is given up."""
FIRST, LATER = 0, 3
"""The batch before the first step, and the second and last one of the second epoch."""


@dataclass(frozen=True)
class RankFault:
    """A fault on one process of two.

    Args:
        detail: What happens, and when.
        attach: Injects it into the run of that process.
        codes: The exit codes of process 0 and process 1; None for one that is killed because it hangs.
        rank: The process.
    """

    detail: str
    attach: Callable[[Run], object]
    codes: tuple[int | None, int | None]
    rank: int = 1


class Pair(Stage):
    """Directories of one trial, and two processes that run there together."""

    ends: list[Ended]

    def fit(
        self,
        *attached: Attach,
        ckpt_path: Path | None = None,
        output: str = "output",
        rank: int = 1,
        seconds: tuple[float, float] = (120.0, 120.0),
    ) -> Ended:
        """Make a run of two processes; attachments belong to one of them.

        Args:
            attached: Change the run of process `rank`.
            ckpt_path: The checkpoint to resume.
            output: The beginning of the names of the files that the processes print to.
            rank: The process with the fault.
            seconds: How long process 0 and process 1 may take.
        """
        port = str(free_port())
        processes: list[Process] = []
        for number in range(2):
            own = [_in_two, *(attached if number == rank else ())]
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
            environment |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
            processes.append(self.start(*own, ckpt_path=ckpt_path, output=f"{output}-{number}", **environment))
        self.ends = [process.wait(limit) for process, limit in zip(processes, seconds, strict=True)]
        return self.ends[0]


def _in_two(run: Run) -> None:
    run.changes |= toys.strategy(run.module, 2)
    run.add(FaultTolerance(handles_sigint=True, step_timeout=STEP_TIMEOUT))


def rank_faults() -> list[RankFault]:
    """List an error, a death and a value that is not finite at three points each, a hang, and faults in a save."""

    def at(point: str, batch: int, action: Action) -> Callable[[Run], None]:
        return lambda run: run.add(Moment(point, batch, marked(run.marker, action), run.student))

    def poison(place: str, batch: int) -> Callable[[Run], None]:
        return lambda run: run.add(Poison(place, batch, run.student, run.other, run.marker.touch))

    def saving(stage: str, action: Action) -> Callable[[Run], None]:
        return lambda run: in_a_save(stage, 2, marked(run.marker, action))

    points = {"before the first step": ("forward", FIRST), "in a step": ("after step", LATER)}
    points["in a validation"] = ("validation", LATER)
    found: list[RankFault] = []
    for name, point in points.items():
        found.append(RankFault(f"error {name}", at(*point, fail(RuntimeError("injected"))), (1, 1)))
        found.append(RankFault(f"death {name}", at(*point, kill()), (1, -signal.SIGKILL)))
    found += [
        RankFault("NaN before the first step", poison("input", FIRST), (2, 2)),
        RankFault("NaN in a step", poison("gradient", LATER), (2, 2)),
        RankFault("NaN before a save", poison("weight after the step", LATER), (2, 2)),
        RankFault("hang in a step", at("after step", LATER, hang), (1, None)),
        RankFault("SIGTERM for one", at("after step", LATER - 1, kill(signal.SIGTERM)), (143, 143)),
        RankFault("SIGINT for one", at("forward", LATER - 1, kill(signal.SIGINT)), (130, 130), rank=0),
        RankFault("death in a save", saving("middle", kill()), (-signal.SIGKILL, 1), rank=0),
        RankFault("disk full in a save", saving("middle", disk_full), (2, 1), rank=0),
    ]
    return found


def pair_truth(family: str, base: Path) -> Truth:
    """Make the undisturbed run of a family in two processes.

    Raises:
        RuntimeError: It failed.
    """
    pair = Pair(family, Path(tempfile.mkdtemp(dir=base)))
    pair.fit()
    result = pair.result()
    pair.clear()
    if any(end.code for end in pair.ends):
        raise RuntimeError("\n".join(f"two processes of {family!r} failed:\n{end.output}" for end in pair.ends))
    return Truth({name: value for name, value in result.items() if name != "calls"}, 0)


def try_rank_fault(family: str, fault: RankFault, truth: Truth, base: Path) -> Verdict:
    """Inject one fault into one of two processes, resume both, and compare them with the undisturbed run."""
    pair = Pair(family, Path(tempfile.mkdtemp(dir=base)))
    verdict = Verdict(family, "one of two processes", fault.detail)
    patience = [1.0 if code is None else 120.0 for code in fault.codes]
    pair.fit(fault.attach, rank=fault.rank, seconds=(patience[0], patience[1]))
    verdict.code, verdict.lines = pair.ends[0].code, sum(end.lines for end in pair.ends)
    verdict.seconds = round(max(end.seconds for end in pair.ends), 2)
    if not pair.marker.exists():
        verdict.other.append("the fault was not injected")
    for number, (end, code) in enumerate(zip(pair.ends, fault.codes, strict=True)):
        expected = int(code is not None and code > 0)
        if end.code != code or end.lines != expected or end.seconds > LIMIT:
            verdict.other.append(f"process {number}: {end.code} after {end.seconds:.0f} s: {end.output[-2000:]}")
    is_killed = any(code is None or code < 0 for code in fault.codes)
    inspect(pair, verdict, truth, is_killed)
    return verdict
