"""The files of a comparison, and the plain values that are stored there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kd_lightning.compare.measure.measures import NetworkStats
from kd_lightning.compare.plan.config import Config
from kd_lightning.compare.plan.stored import DamagedError, read_result
from kd_lightning.compare.plan.variants import LAST_CHECKPOINT, Run
from kd_lightning.core.files import write_text

CONFIG, RESULT, ERROR, LOG, OUTPUTS = "compare.yaml", "result.json", "error.txt", "log.txt", "test.npz"
IMAGES = "test_images.npz"
"""In a group's directory: its test images as bytes, of which the report shows some."""
NETWORKS = "networks.json"
"""In the root: the costs of each network, by `network_key`."""

Result = dict[str, Any]
"""The measurements of a run, as plain values; see `kd_lightning.compare.run.execution`."""
Results = Mapping[Run, Result]
"""The results of the finished runs."""


class ProfileResult(NamedTuple):
    """The measurements of a variant before anything is trained."""

    seconds: float | None
    """Estimated duration of a run; None where a few steps do not tell."""
    reason: str
    """Why there is no estimate."""
    stats: NetworkStats | None
    """The costs of the student; None if they were not to be measured."""


@dataclass(frozen=True)
class RunSpec:
    """Everything that a worker needs to know of a run, as plain values."""

    run_dir: Path
    config: Config
    digest: str
    teacher_dir: Path | None
    labels: dict[str, Any]
    """The columns of TensorBoard's HParams page."""
    evaluate: str | None = None
    """The network to evaluate, or ``mean`` for all of them; None for the inference network."""
    student: str | None = None
    """Of a LightningModule that is no learner: the dotted name of the network that gives the logits."""
    monitor: tuple[str, str] | None = None
    """The metric to compare by and its mode; None for the learner's own."""
    weights: str | None = None
    """The file of a network that was trained elsewhere: nothing is trained."""


def run_spec(run: Run, root: Path) -> RunSpec:
    """Describe a run whose teacher, if it has one, is finished."""
    teacher = run.teacher
    labels = {"group": run.variant.group, "variant": run.variant.name, "seed": run.seed}
    return RunSpec(
        run_dir=root / run.name,
        config=run.placed(root),
        digest=run.digest(root),
        teacher_dir=root / teacher.name if teacher else None,
        labels=labels | {"teacher": teacher.name if teacher else "none"},
        evaluate=run.variant.evaluate,
        student=run.variant.student,
        monitor=run.variant.monitor,
        weights=run.weights,
    )


def finished(run: Run, root: Path) -> Result | None:
    """Return the stored result of a run; None unless its configuration and the files of other runs are unchanged."""
    needed = [root / run.name / name for name in (RESULT, OUTPUTS, LAST_CHECKPOINT)]
    if not all(path.is_file() for path in needed) or any(finished(need, root) is None for need in run.needs):
        return None
    try:
        result = read_result(needed[0])
    except DamagedError:
        return None
    return result if result["digest"] == run.digest(root) else None


def finished_earlier(results: Sequence[Result]) -> str:
    """Say how many runs are not repeated, and when they were run; empty without any.

    Example:
        >>> finished_earlier([{"finished_at": "2026-03-01 10:00 UTC", "version": "0.1.0"}])
        '1 run finished earlier: 2026-03-01 10:00 UTC, kd_lightning 0.1.0'
    """
    if not results:
        return ""
    moments = sorted(str(result.get("finished_at", "an unknown time")) for result in results)
    versions = ", ".join(sorted({str(result.get("version", "?")) for result in results}))
    when = moments[0] if moments[0] == moments[-1] else f"{moments[0]} to {moments[-1]}"
    return f"{len(results)} run{'s' if results[1:] else ''} finished earlier: {when}, kd_lightning {versions}"


def damage(runs: list[Run], root: Path) -> list[str]:
    """Describe the stored results that cannot be read, whose runs count as not finished: one line each."""
    lines: list[str] = []
    for path in dict.fromkeys(root / run.name / RESULT for run in runs):
        try:
            if path.exists():
                read_result(path)
        except DamagedError as error:
            lines.append(f"{error}: the run counts as not finished")
    return lines


def keep_traceback(run: Run, root: Path, details: str) -> None:
    """Write the traceback of a failed run into its directory, if it has one already."""
    if (root / run.name / CONFIG).is_file():
        write_text(root / run.name / ERROR, details)
