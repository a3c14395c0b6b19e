"""The faults that are injected into every family's run."""

from __future__ import annotations

import os
import random
import resource
import signal
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.faults.moments import (
    HALF,
    Action,
    AtCall,
    Moment,
    Pause,
    disk_full,
    in_a_save,
    kill,
    marked,
)
from benchmarks.faults.process import Ended, Run
from benchmarks.faults.trial import Fault, Stage, Truth
from benchmarks.faults.values import PLACES, Poison

KILL, STOPS = "SIGKILL", {"SIGTERM": (signal.SIGTERM, 143, "terminated"), "SIGINT": (signal.SIGINT, 130, "interrupted")}
BATCH = 5
"""The batch of most faults: the second one of the second epoch."""
STEP_POINTS = ("forward", "after step", "validation")


def faults(seed: int = 0) -> list[Fault]:
    """List all faults; the seed chooses random moments."""
    return [*_saves(), *_signals(random.Random(seed)), *_values(), *_disks(), *_files()]


def _saves() -> list[Fault]:
    """SIGKILL while a checkpoint is written, with temporary files on the same file system and on another one."""

    def fault(stage: str, number: int, apart: bool) -> Fault:
        where = "TMPDIR apart" if apart else "TMPDIR beside"
        return Fault(
            "SIGKILL in a save",
            f"{stage}, checkpoint {number}, {where}",
            lambda run, _: in_a_save(stage, number, marked(run.marker, kill())),
            codes=(-signal.SIGKILL,),
            apart=apart,
        )

    stages = ("before", "middle", "rename", "after")
    return [fault(stage, 1 + i % 3, apart) for apart in (False, True) for i, stage in enumerate(stages)]


def _at(point: str, action: Action) -> Any:
    def attach(run: Run, truth: Truth) -> None:
        where = point if run.family.validates or point != "validation" else "epoch end"
        run.add(Moment(where, BATCH, marked(run.marker, action), run.student))

    return attach


def _at_random(share: float, action: Action) -> Any:
    def attach(run: Run, truth: Truth) -> None:
        run.add(AtCall(1 + int(share * truth.calls), marked(run.marker, action)))

    return attach


def _signals(chance: random.Random) -> list[Fault]:
    """Signals inside of a step, in an optimizer step, in a validation, and at random calls of functions."""
    found: list[Fault] = []
    for name, number in ((KILL, signal.SIGKILL), ("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
        _, code, says = STOPS.get(name, (number, -number, ""))
        for point in STEP_POINTS:
            found.append(Fault(name, point, _at(point, kill(number)), (code,), says))
        for _ in range(2):
            share = round(chance.uniform(0.05, 0.95), 3)
            found.append(Fault(name, f"at {share:.1%} of all calls", _at_random(share, kill(number)), (code,), says))
    return found


def _values() -> list[Fault]:
    """Values that are not finite, and a learning rate of 1e30."""

    def fault(place: str) -> Fault:
        def attach(run: Run, truth: Truth) -> None:
            run.add(Poison(place, BATCH, run.student, run.other, run.marker.touch))

        return Fault("not finite", place, attach, says="not finite")

    return [fault(place) for place in PLACES]


def _disks() -> list[Fault]:
    """A disk that is full in the midst of a checkpoint, a limit on a file's size, and a directory that is read-only."""

    def full(run: Run, truth: Truth) -> None:
        in_a_save("middle", 3, marked(run.marker, disk_full), stays=True)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, resource.RLIM_INFINITY))

    def read_only(run: Run) -> Action:
        def action() -> None:
            run.folder.chmod(0o555)
            obey_permissions()

        return action

    def locked(run: Run, truth: Truth) -> None:
        _at("after step", read_only(run))(run, truth)

    def play(stage: Stage, truth: Truth) -> Ended:
        ended = stage.fit(lambda run: locked(run, truth))
        stage.run.chmod(0o755)
        (stage.run / ".lock").unlink(missing_ok=True)  # it could not be removed
        return ended

    return [
        Fault("disk", "full in the midst of a checkpoint", full, says="No space left on device"),
        Fault("disk", "limit of a file's size", _at("after step", limit), says="File too large"),
        Fault("disk", "directory made read-only", says="Permission denied", play=play),
    ]


def obey_permissions() -> None:
    """Take from this process the right of a superuser to write where permissions forbid it."""
    if os.geteuid() != 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the structure, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of 32 capabilities and of the others
    libc.capget(header, sets)
    sets[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _files() -> list[Fault]:
    """A bit of the last checkpoint is flipped; a second run begins in the directory of one that goes on."""

    def flipped(stage: Stage, truth: Truth) -> Ended:
        stage.fit(lambda run: _at("after step", kill(signal.SIGTERM))(run, truth))
        stage.marker.touch()
        last = stage.run / "last.ckpt"
        content = last.read_bytes()
        with zipfile.ZipFile(last) as archive:
            longest = max(archive.infolist(), key=lambda member: member.file_size)
            tensor = archive.read(longest)
        place = content.index(tensor) + len(tensor) // 2
        last.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        ended = stage.fit(ckpt_path=last, output="flipped")
        last.write_bytes(content)
        return ended

    def second(stage: Stage, truth: Truth) -> Ended:
        goes_on: Path = stage.folder / "continue"
        first = stage.start(lambda run: run.add(Pause(BATCH, stage.marker, goes_on)))
        while first.is_running() and not stage.marker.exists():
            pass
        ended = stage.fit(ckpt_path=stage.run / "last.ckpt", output="second")
        goes_on.touch()
        first.wait()
        return ended

    return [
        Fault("flipped bit", "in the last checkpoint", says="ckpt_path", play=flipped),
        Fault("second process", "resumes the same run", says="has a run there", play=second),
    ]
