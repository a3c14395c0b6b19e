"""The training of one run, as a task for a worker."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

import kd_lightning
from kd_lightning.cli.components import parameters
from kd_lightning.compare.messages import ReportProgress
from kd_lightning.compare.plan.artifacts import CONFIG, LOG, RESULT, Result, finished, run_spec
from kd_lightning.compare.plan.config import Config
from kd_lightning.compare.plan.stored import sealed
from kd_lightning.compare.plan.variants import Run
from kd_lightning.compare.run.output import output_to
from kd_lightning.core.files import write_text


@dataclass(frozen=True)
class Training:
    """A task that trains and evaluates a run in a new directory, and writes the result there.

    Args:
        run: The run; those that it needs are finished.
        root: The directory of the comparison.
        has_log: False to show what the run prints, in place of writing it into the run's directory.
    """

    run: Run
    root: Path
    has_log: bool = True

    def __call__(self, report_progress: ReportProgress) -> Result:
        """Train and evaluate, unless the run is finished: then another process did it, and died.

        Raises:
            FileExistsError: The run's directory holds files of something else.
        """
        if (stored := finished(self.run, self.root)) is not None:
            return stored
        spec = run_spec(self.run, self.root)
        clear_run(spec.run_dir)
        write_config(spec.run_dir, spec.config)  # before any other file, since it marks the directory as a run's
        with output_to(spec.run_dir / LOG) if self.has_log else nullcontext():
            from kd_lightning.compare.run.execution import execute  # it loads torch, which only the workers need

            write_config(spec.run_dir, without_unknown_seed(spec.config))
            result = execute(spec, report_progress) | {"digest": spec.digest, **_when()}
        write_text(spec.run_dir / RESULT, json.dumps(sealed(result), indent=1))
        return result


def _when() -> Result:
    now = datetime.now(UTC).isoformat(sep=" ", timespec="minutes").partition("+")[0]
    return {"finished_at": f"{now} UTC", "version": kd_lightning.__version__}


def without_unknown_seed(config: Config) -> Config:
    """Return the configuration without the data's seed where a user's data module has no such argument."""
    data = config["data"]
    class_path = data.get("class_path", "")
    if "." not in class_path or "seed" in parameters(class_path):  # the package's own have short names, and a seed
        return config
    arguments = {name: value for name, value in data["init_args"].items() if name != "seed"}
    return config | {"data": data | {"init_args": arguments}}


def write_config(run_dir: Path, config: Config) -> None:
    """Write the configuration of a run, which marks its directory as a run's."""
    write_text(run_dir / CONFIG, yaml.safe_dump(config, sort_keys=False))


def clear_run(run_dir: Path) -> None:
    """Remove an unfinished run, or one of another configuration, but never files of something else."""
    if run_dir.exists() and any(run_dir.iterdir()) and not (run_dir / CONFIG).exists():
        raise FileExistsError(
            f"{run_dir} holds something else than a run of a comparison: move it, or name another --root"
        )
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
