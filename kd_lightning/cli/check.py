"""``kd-lightning check``: build a configuration and take one batch of it, so that a mistake costs seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import LightningModule

from kd_lightning.callbacks import TeacherCache
from kd_lightning.cli.engine import build
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.core.attached import callbacks_of, detach
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import describe, is_user_error, wants_traceback
from kd_lightning.core.learner import Learner

HELP = """\
usage: kd-lightning check --config FILE [OPTION ...]

Build what the configuration describes, take one step on one training batch, and validate one batch. Nothing is written
into the run directory, no logger is called and no teacher's outputs are cached. One line has the result.

  --config FILE      YAML file of the run, as for `fit`; later files override earlier ones
  --model... --data... --trainer...
                     options override files; `kd-lightning fit --help` lists all of them

  kd-lightning check --config configs/response/kd.yaml

Exit codes: 0; 2 for any error, with one line that names it.
"""


def main(args: Sequence[str]) -> int:
    """Build a configuration and take one batch of it.

    Args:
        args: The arguments after ``kd-lightning check``, those of ``kd-lightning fit``.

    Returns:
        The exit code.

    Raises:
        UsageError: It cannot be built, or its batch cannot be taken: any error, in one line.
    """
    if "--help" in args or "-h" in args:
        print(HELP, end="")
        return 0
    if not args:
        raise UsageError("check: name a configuration: kd-lightning check --config FILE")
    start = time.perf_counter()
    try:
        with TemporaryDirectory() as folder, expected_messages_hidden(), _announcements_hidden():
            cli = build([*args, "--ckpt_path=null", *_settings(folder)])
            for callback in callbacks_of(cli.trainer):
                if isinstance(callback, TeacherCache):  # its pass would run the teacher on every row
                    detach(cli.trainer, callback)
            cli.run()
    except Exception as error:
        if is_user_error(error) or wants_traceback():
            raise
        raise UsageError(f"check: {describe(error)}") from error
    if cli.trainer.is_global_zero:
        seconds = time.perf_counter() - start
        figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(cli.trainer.callback_metrics.items()))
        print(f"check: ok: {_subject(cli.model)} took one batch in {seconds:.1f} s: {figures or 'nothing was logged'}")
    return 0


def _settings(folder: str) -> list[str]:
    trainer = {
        "fast_dev_run": "1",
        "default_root_dir": folder,
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
    }
    return [f"--trainer.{name}={value}" for name, value in trainer.items()]


def _subject(model: LightningModule) -> str:
    """Describe a model: its class, and of a learner the networks."""
    network: Any = getattr(model, "student", None)
    if not isinstance(model, Learner):
        return type(model).__name__
    count = sum(parameter.numel() for parameter in network.parameters())
    teacher = getattr(model, "teacher", None)
    taught = "" if teacher is None else f", teacher {type(teacher).__name__}"
    return f"{type(model).__name__} (student {type(network).__name__} of {count:,} parameters{taught})"


@contextmanager
def _announcements_hidden() -> Generator[None]:
    """Hide what Lightning logs of devices and limits of the run; warnings stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
