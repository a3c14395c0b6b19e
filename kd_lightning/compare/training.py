"""One run as a task for a worker, and what it leaves in its folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.compare.config import Config
from kd_lightning.compare.plan import Run
from kd_lightning.compare.worker import Tell, output_to

CONFIG, RESULT, ERROR, LOG, LOGITS = "compare.yaml", "result.json", "error.txt", "log.txt", "test.npz"


@dataclass(frozen=True)
class Training:
    """All that a worker needs to know of a run, in plain values."""

    folder: Path
    config: Config
    digest: str
    teacher_folder: Path | None
    labels: dict[str, Any]
    """What TensorBoard's HParams page sorts the runs by."""
    network: str | None = None
    """Which of several networks is measured, or ``mean``; the deployed one if not given."""

    def __call__(self, tell: Tell) -> dict[str, Any]:
        """Trains and evaluates in a new folder, and leaves the result there."""
        _make_room(self.folder)
        (self.folder / CONFIG).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        with output_to(self.folder / LOG):
            from kd_lightning.compare.fitting import fit_and_measure  # torch is the worker's, not the parent's

            result = fit_and_measure(self, tell) | {"digest": self.digest}
        unfinished = self.folder / f".{RESULT}"
        unfinished.write_text(json.dumps(result, indent=1))
        unfinished.replace(self.folder / RESULT)
        return result


def training_of(run: Run, root: Path) -> Training:
    """The task for a run whose teacher, if it has one, is finished."""
    teacher = run.teacher
    labels = {"group": run.variant.group, "variant": run.variant.name, "seed": run.seed}
    return Training(
        folder=root / run.name,
        config=run.placed(root),
        digest=run.digest(root),
        teacher_folder=root / teacher.name if teacher else None,
        labels=labels | {"teacher": teacher.name if teacher else "none"},
        network=run.variant.network,
    )


def finished(run: Run, root: Path) -> dict[str, Any] | None:
    """The result of a run that was finished under this very configuration and with these very files of other runs."""
    needed = [root / run.name / name for name in (RESULT, LOGITS, "last.ckpt")]
    if not all(path.is_file() for path in needed) or any(finished(need, root) is None for need in run.needs):
        return None
    result = json.loads(needed[0].read_text())
    return result if result["digest"] == run.digest(root) else None


def keep_traceback(run: Run, root: Path, details: str) -> None:
    """Leaves what went wrong in the folder of a run, if it came so far as to have one."""
    if (root / run.name / CONFIG).is_file():
        (root / run.name / ERROR).write_text(details, encoding="utf-8")


def _make_room(folder: Path) -> None:
    """Removes an unfinished run, or one of another configuration; never what is not ours."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise FileExistsError(
            f"{folder} holds something else than a run of a comparison: move it, or name another --root"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
