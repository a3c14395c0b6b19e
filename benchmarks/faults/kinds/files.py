"""Checkpoints that are damaged between two runs, and second processes in the directory of a run."""

from __future__ import annotations

import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.moments import BATCH, Pause, at, kill
from benchmarks.faults.process import Ended
from benchmarks.faults.trial import Fault, Stage, Truth


def file_faults() -> list[Fault]:
    """List all."""
    return [
        Fault("damaged file", "a bit of the last checkpoint", says="ckpt_path", play=_damaged(_flip)),
        Fault("damaged file", "the last checkpoint cut in half", says="ckpt_path", play=_damaged(_cut)),
        Fault("second process", "resumes the same run", says="has a run there", play=_second(BATCH, True)),
        Fault("second process", "starts in the same directory", says="has a run", play=_second(0, False)),
    ]


def _flip(path: Path) -> bytes:
    """Return the content of a checkpoint with another bit in its longest tensor."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda member: member.file_size))
    place = content.index(tensor) + len(tensor) // 2
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def _cut(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: len(content) // 2]


def _damaged(change: Callable[[Path], bytes]) -> Any:
    def play(stage: Stage, truth: Truth) -> Ended:
        stage.fit(lambda run: at("after step", kill(signal.SIGTERM))(run, truth))
        stage.marker.touch()
        last = stage.run / "last.ckpt"
        content = last.read_bytes()
        last.write_bytes(change(last))
        ended = stage.fit(ckpt_path=last, output="damaged")
        last.write_bytes(content)
        return ended

    return play


def _second(batch: int, resumes: bool) -> Any:
    def play(stage: Stage, truth: Truth) -> Ended:
        goes_on = stage.folder / "continue"
        first = stage.start(lambda run: run.add(Pause(batch, stage.marker, goes_on)))
        while first.is_running() and not stage.marker.exists():
            pass
        ended = stage.fit(ckpt_path=stage.run / "last.ckpt" if resumes else None, output="second")
        goes_on.touch()
        first.wait()
        return ended

    return play
