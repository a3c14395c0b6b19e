"""Signals in saves, in steps, in a validation, at random moments, before training, and two of them."""

from __future__ import annotations

import random
import signal
from typing import Any

from lightning.pytorch import Callback

from benchmarks.faults.moments import Action, AtCall, at, in_a_save, kill, marked
from benchmarks.faults.process import Ended, Run
from benchmarks.faults.trial import Fault, Stage, Truth

SIGNALS = {
    "SIGKILL": (signal.SIGKILL, -signal.SIGKILL, ""),
    "SIGTERM": (signal.SIGTERM, 143, "terminated"),
    "SIGINT": (signal.SIGINT, 130, "interrupted"),
}
"""The number of a signal, the exit code after it, and a word of the line that is printed."""


def signal_faults(seed: int) -> list[Fault]:
    """List all; the seed chooses the random moments."""
    chance = random.Random(seed)
    return [*_saves(), *_stops(chance), *_starts(), *_twice(chance)]


def _saves() -> list[Fault]:
    """SIGKILL while a checkpoint is written, with temporary files on the same file system and on another one."""

    def fault(stage: str, number: int, apart: bool) -> Fault:
        return Fault(
            "SIGKILL in a save",
            f"{stage}, checkpoint {number}, TMPDIR {'apart' if apart else 'beside'}",
            lambda run, _: in_a_save(stage, number, marked(run.marker, kill())),
            codes=(-signal.SIGKILL,),
            apart=apart,
        )

    stages = ("before", "middle", "rename", "after")
    return [fault(stage, 1 + i % 3, apart) for apart in (False, True) for i, stage in enumerate(stages)]


def _at_random(share: float, action: Action) -> Any:
    def attach(run: Run, truth: Truth) -> None:
        run.add(AtCall(1 + int(share * truth.calls), marked(run.marker, action)))

    return attach


def _stops(chance: random.Random) -> list[Fault]:
    """Signals in a forward pass, before the end of a batch, in a validation, and at random calls of functions."""
    found: list[Fault] = []
    for name, (number, code, says) in SIGNALS.items():
        for point in ("forward", "after step", "validation"):
            found.append(Fault(name, point, at(point, kill(number)), (code,), says))
        for _ in range(2):
            share = round(chance.uniform(0.05, 0.95), 3)
            found.append(Fault(name, f"at {share:.1%} of all calls", _at_random(share, kill(number)), (code,), says))
    return found


class _AtSetup(Callback):
    """Does something before training begins."""

    def __init__(self, action: Action) -> None:
        self.action = action

    def on_fit_start(self, *_: Any) -> None:
        """Do it."""
        self.action()


def _starts() -> list[Fault]:
    """Signals before the first batch, when a shell's code for SIGTERM may be the system's."""
    return [
        Fault(
            name,
            "before training",
            lambda run, _, n=number: run.add(_AtSetup(marked(run.marker, kill(n)))),
            codes,
            says,
        )
        for name, number, codes, says in (
            ("SIGTERM", signal.SIGTERM, (-signal.SIGTERM, 143), "terminated"),
            ("SIGINT", signal.SIGINT, (130,), "interrupted"),
        )
    ]


def _twice(chance: random.Random) -> list[Fault]:
    """A second SIGINT in the same step; SIGKILL in the save that SIGTERM leads to; a fault in the resumed run."""

    def two(run: Run) -> Action:
        def action() -> None:
            kill(signal.SIGINT)()
            kill(signal.SIGINT)()

        return marked(run.marker, action)

    def preempted(stage: str) -> Any:
        def attach(run: Run, truth: Truth) -> None:
            def action() -> None:
                in_a_save(stage, 1, kill())
                kill(signal.SIGTERM)()

            at("after step", action)(run, truth)

        return attach

    def again(number: int) -> Any:
        first, second = sorted(chance.uniform(0.3, 0.9) for _ in range(2))

        def play(stage: Stage, truth: Truth) -> Ended:
            stage.fit(lambda run: _at_random(first, kill(number))(run, truth))
            return stage.resume(lambda run: _at_random((second - first) / 2, kill(number))(run, truth))

        return play

    killed = -signal.SIGKILL
    return [
        Fault(
            "two signals", "SIGINT twice in a step", lambda r, t: at("after step", two(r))(r, t), (130,), "interrupted"
        ),
        *(
            Fault("two signals", f"SIGTERM, and SIGKILL in its save, {stage}", preempted(stage), (killed,))
            for stage in ("middle", "rename", "after")
        ),
        *(
            # the second may come after the last step, where nothing is left to stop
            Fault(
                "two signals", f"{name}, and again in the resumed run", play=again(number), codes=(code, 0), says=says
            )
            for name, (number, code, says) in SIGNALS.items()
        ),
    ]
