"""One fault: the run with it, the run that resumes after it, and what both have left."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import evidence
from benchmarks.faults.families import FAMILIES
from benchmarks.faults.moments import AtCall
from benchmarks.faults.process import Attach, Ended, Process, Run, fit
from tests import toys

ELSEWHERE = Path("/dev/shm")
"""Another file system than the run directories', for temporary files."""


@dataclass
class Verdict:
    """Findings after one fault; every list of problems is to be empty."""

    family: str
    kind: str
    detail: str
    code: int | None = None
    lines: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    """Unequal because of a limit that docs/reliability.md names, and no problem."""
    other: list[str] = field(default_factory=list)
    """No fault, or another exit code, message or time than a user may expect."""

    @property
    def problems(self) -> list[str]:
        """All problems in one list."""
        return [*self.lost, *self.unreadable, *self.strays, *self.unequal, *self.other]


@dataclass(frozen=True)
class Truth:
    """Result of an undisturbed run, and the number of calls of functions in its training."""

    result: dict[str, Any]
    calls: int


class Stage:
    """Directories of one trial, and the processes that run there.

    Args:
        family: Name of the family.
        folder: An empty directory.
        apart: Temporary files are on another file system than the run.
    """

    def __init__(self, family: str, folder: Path, apart: bool = False) -> None:
        self.name, self.family, self.folder = family, FAMILIES[family], folder
        self.run, self.marker = folder / "run", folder / "injected"
        self.temporary = Path(tempfile.mkdtemp(dir=ELSEWHERE if apart and ELSEWHERE.is_dir() else folder))

    def start(
        self, *attached: Attach, ckpt_path: Path | None = None, output: str = "output", **environment: str
    ) -> Process:
        """Begin a run in the run directory."""

        def function() -> int:
            return fit(
                self.family, self.run, *attached, marker=self.marker, ckpt_path=ckpt_path, after=self._write_result
            )

        return Process(function, self.folder / f"{output}.txt", self.temporary, **environment)

    def fit(self, *attached: Attach, ckpt_path: Path | None = None, output: str = "output") -> Ended:
        """Make a run in the run directory."""
        return self.start(*attached, ckpt_path=ckpt_path, output=output).wait()

    def resume(self, *attached: Attach) -> Ended:
        """Make the rest of the run: from its last checkpoint, or in an empty directory where it has none."""
        checkpoints = [path for name in ("last", "best") if (path := self.run / f"{name}.ckpt").exists()]
        if not checkpoints:
            shutil.rmtree(self.run, ignore_errors=True)
        return self.fit(*attached, ckpt_path=checkpoints[0] if checkpoints else None, output="resumed")

    def forget(self) -> None:
        """Expect no checkpoint that was written until now, nor the end of the run."""
        for name in ("saves", "result.json"):
            (self.folder / name).unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        """Return the result of the last whole run; empty if there was none."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def clear(self) -> None:
        """Remove the directories."""
        for folder in (self.folder, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_result(self, trainer: Any, module: Any) -> None:
        if not trainer.is_global_zero:
            return
        calls = next((each.count for each in trainer.callbacks if isinstance(each, AtCall)), 0)
        evidence.write_result(self.run, toys.weights(module), calls=calls)


@dataclass(frozen=True)
class Fault:
    """A fault that can be injected into every run.

    Args:
        kind: The row of the table.
        detail: The moment.
        attach: Injects it into a run that is about to begin.
        codes: The exit codes that the run may end with.
        says: A part of its only line; empty for a run that says nothing.
        apart: Temporary files are on another file system.
        loses: The fault itself removes checkpoints.
        play: Makes the run and the fault where `attach` is not enough; returns the end of the faulty process.
    """

    kind: str
    detail: str
    attach: Callable[[Run, Truth], object] = lambda run, truth: None
    codes: tuple[int, ...] = (2,)
    says: str = ""
    apart: bool = False
    loses: bool = False
    play: Callable[[Stage, Truth], Ended] | None = None


def truth_of(family: str, base: Path) -> Truth:
    """Make the undisturbed run of a family.

    Raises:
        RuntimeError: It failed.
    """
    stage = Stage(family, Path(tempfile.mkdtemp(dir=base)))
    ended = stage.fit(lambda run: run.add(AtCall()))
    result = stage.result()
    stage.clear()
    if ended.code or not result:
        raise RuntimeError(f"the run of {family!r} failed without a fault:\n{ended.output}")
    return Truth({name: value for name, value in result.items() if name != "calls"}, result["calls"])


def try_fault(family: str, fault: Fault, truth: Truth, base: Path) -> Verdict:
    """Inject one fault into a run of a family, resume the run, and compare it with the undisturbed one."""
    stage = Stage(family, Path(tempfile.mkdtemp(dir=base)), fault.apart)
    verdict = Verdict(family, fault.kind, fault.detail)
    ended = fault.play(stage, truth) if fault.play else stage.fit(lambda run: fault.attach(run, truth))
    verdict.code, verdict.lines, verdict.seconds = ended.code, ended.lines, round(ended.seconds, 2)
    verdict.other += _end(stage, fault, ended)
    if fault.loses:
        stage.forget()
    inspect(stage, verdict, truth, is_killed=ended.code is None or ended.code < 0)
    return verdict


def inspect(stage: Stage, verdict: Verdict, truth: Truth, is_killed: bool) -> None:
    """Inspect a run after its fault, resume it, and compare it with the undisturbed one.

    Args:
        stage: Where it ran; cleared afterwards.
        verdict: Gets the problems.
        truth: The undisturbed run.
        is_killed: The run could not remove its files; then the next one is to do so.
    """
    verdict.lost += evidence.lost(stage.run)
    verdict.unreadable += evidence.unreadable(stage.run)
    if not is_killed:
        verdict.strays += evidence.strays(stage.folder, stage.run, stage.temporary)
    step = evidence.last_step(stage.run)
    if not stage.result():
        resumed = stage.resume()
        if resumed.code != 0:
            verdict.other.append(f"the resumed run ended with {resumed.code}: {resumed.output[-2000:]}")
    verdict.unreadable += evidence.unreadable(stage.run)
    verdict.strays += evidence.strays(stage.folder, stage.run, stage.temporary)
    found = stage.result()
    unequal = [name for name, value in truth.result.items() if found.get(name) != value]
    is_limit = unequal == ["weights"] and not stage.family.ends_at_the_last_step
    if is_limit and step == evidence.last_step(stage.run):  # the resumed run had no step to make
        verdict.allowed += unequal
    else:
        verdict.unequal += unequal
    stage.clear()


def _end(stage: Stage, fault: Fault, ended: Ended) -> list[str]:
    """List the faults of the end of the run with the fault."""
    problems = [] if stage.marker.exists() else ["the fault was not injected"]
    if ended.code not in fault.codes:
        problems.append(f"exit code {ended.code} instead of {fault.codes}: {ended.output[-2000:]}")
    expected = 1 if ended.code not in (0, None) and ended.code > 0 else 0
    if ended.lines != expected or (expected and fault.says not in ended.output):
        problems.append(f"{ended.lines} lines instead of {expected}: {ended.output[-2000:]}")
    return problems


def as_json(verdicts: list[Verdict]) -> str:
    """Write verdicts as JSON."""
    return json.dumps([asdict(verdict) for verdict in verdicts], indent=1)
