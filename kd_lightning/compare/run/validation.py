"""The validation score of a run, for a sweep: its test data are not opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from kd_lightning.cli.engine import CLI, build
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.compare.measure.subject import Monitor, learner_of, logged_metrics, monitor_of, named_metric
from kd_lightning.compare.plan.artifacts import CONFIG, LOG
from kd_lightning.compare.plan.config import with_teacher
from kd_lightning.compare.plan.variants import Run, Variant
from kd_lightning.compare.run.output import output_to
from kd_lightning.compare.run.training import clear_run, without_unknown_seed, write_config
from kd_lightning.core.errors import UsageError


class Validation:
    """Trains runs and returns the monitored metric of their last validation.

    Args:
        root: Directory of the runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def score(self, run: Run) -> float:
        """Train a run in a new directory.

        Raises:
            UsageError: It has no validation, or its teacher has no file yet.
        """
        with output_to(self._new_directory(run) / LOG), expected_messages_hidden():
            built = build(["--config", str(self.root / run.name / CONFIG)])
            built.run()
        found = logged_metrics(cast("Any", built.trainer), "val")
        name = self._monitor(built, run.variant, list(found)).name
        if name not in found:
            raise UsageError(f"{run.variant.path}: was not validated, and a sweep chooses by that: set data.val_size")
        return found[name]

    def monitor(self, variant: Variant) -> Monitor:
        """Return the metric that is followed: the compare file's, or that of the built learner."""
        if variant.monitor is not None:
            return Monitor(named_metric(variant.monitor[0]), variant.monitor[1])
        run = variant.runs[0]
        with output_to(self._new_directory(run) / LOG), expected_messages_hidden():
            built = build(["--config", str(self.root / run.name / CONFIG)])
        return self._monitor(built, variant, [])

    def _new_directory(self, run: Run) -> Path:
        folder, config = self.root / run.name, without_unknown_seed(run.placed(self.root))
        if run.teacher is not None:
            if run.teacher.weights is None:
                raise UsageError(
                    f"{run.variant.path}: its teacher {run.teacher.variant.path} is to be trained: name its file as "
                    "`weights` there, such as the last.ckpt of a finished comparison"
                )
            config = with_teacher(config, run.teacher.weights)
        clear_run(folder)
        write_config(folder, config)
        return folder

    @staticmethod
    def _monitor(built: CLI, variant: Variant, found: list[str]) -> Monitor:
        asked = None if variant.monitor is None else Monitor(*variant.monitor)
        return monitor_of(learner_of(built.model, variant.student), asked, found)
