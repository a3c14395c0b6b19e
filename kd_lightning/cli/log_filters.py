"""What the command line does not say: Lightning's advertisements, and warnings about what is done on purpose."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

WARNINGS = (
    r"Checkpoint directory .* exists and is not empty",  # config.yaml lies there first, or the run is resumed
    r"Found \d+ module\(s\) in eval mode",  # the teacher
    r"Using ModelCheckpoint with manual optimization",  # which holds what a step made of the networks, as elsewhere
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # of a small training set
    r"You defined a `validation_step` but have no `val_dataloader`",  # data.val_size: 0
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 under torch 2.15, at every start
    r"\s*(?:By default only one Jsonargparse|\S+(?: parameter)? was deprecated in v4)",  # what Lightning calls there
)
LINES = (
    "💡 Tip:",
    "\nDetected KeyboardInterrupt",  # the command line has a line of its own for it
    "An KeyboardInterrupt was raised",
)


@contextmanager
def quiet() -> Generator[None]:
    """Silences exactly these messages while the context is open, and nothing else."""

    def is_said(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(LINES)

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(is_said)
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.removeFilter(is_said)
