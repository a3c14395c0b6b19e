"""Profile: a task that builds a variant before anything is trained, and measures its network and its steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from kd_lightning.cli.configs import merge
from kd_lightning.compare.messages import ReportProgress
from kd_lightning.compare.plan.artifacts import CONFIG, LOG, ProfileResult
from kd_lightning.compare.plan.config import Config, texts, without_checkpoints
from kd_lightning.compare.plan.variants import CHECKPOINT
from kd_lightning.compare.run.output import output_to
from kd_lightning.core.errors import UsageError


@dataclass(frozen=True)
class Profile:
    """A task that measures a variant, in a directory that is then removed.

    Networks that the model loads from checkpoints are built without them: those files need not exist yet.

    Args:
        config: The variant's configuration.
        measure_network: True to measure the costs of the student as well, while nothing else runs.
        trains: False for a variant that only evaluates weights that were trained elsewhere.
        student: Dotted name of the network in a module that is no learner.
        has_log: False to show what the run prints.
    """

    config: Config
    measure_network: bool
    trains: bool = True
    student: str | None = None
    has_log: bool = True

    def __call__(self, report_progress: ReportProgress) -> ProfileResult:
        """Build the variant, measure its student, and time a few steps.

        Raises:
            UsageError: The data are built from checkpoints of other runs, which need not exist yet.
        """
        if named := [text for text in texts(self.config.get("data", {})) if CHECKPOINT.fullmatch(text)]:
            raise UsageError(f"its data need checkpoints of other runs ({', '.join(named)})")
        with TemporaryDirectory(prefix="kd-profile-") as folder:
            places = {"trainer": {"default_root_dir": f"{folder}/run", "limit_val_batches": 1}}
            built = {key: without_checkpoints(self.config.get(key, {})) for key in ("model", "trainer")}
            path = Path(folder) / CONFIG
            path.write_text(yaml.safe_dump(merge(self.config | built, places), sort_keys=False), encoding="utf-8")
            with output_to(Path(folder) / LOG) if self.has_log else nullcontext():
                from kd_lightning.compare.plan.costs import profile_run  # it loads torch, which only the workers need

                return profile_run(path, self.measure_network, self.trains, self.student)
