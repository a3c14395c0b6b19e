"""Messages of Lightning that carry no news: advertisements, and warnings about intended settings. Loads no torch."""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    r"Checkpoint directory .* exists and is not empty",  # config.yaml is written first, or the run is resumed
    r"Found \d+ module\(s\) in eval mode",  # the teacher
    r"Using ModelCheckpoint with manual optimization",  # saves the networks after a step, as elsewhere
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # of a small training set
    r"You defined a `validation_step` but have no `val_dataloader`",  # data.val_size: 0
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 under torch 2.15, at every start
    r"\s*(?:By default only one Jsonargparse|\S+(?: parameter)? was deprecated in v4)",  # Lightning's calls of it
)
"""Regular expressions of warnings."""
ADVERTISEMENTS = ("💡 Tip:",)
"""Beginnings of lines that Lightning logs."""
LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
"""The loggers of these lines."""


def hide_expected_messages() -> None:
    """Hide Lightning's advertisements and its warnings about what distillation intends, for the rest of the process.

    The command line hides the same. Every other warning stays. A second call changes nothing.

    Example:
        >>> from kd_lightning import hide_expected_messages
        >>> with warnings.catch_warnings():
        ...     hide_expected_messages()
        ...     warnings.warn("Found 10 module(s) in eval mode at the start of training")
    """
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(is_no_advertisement)


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Tell whether a logged line is not one of `ADVERTISEMENTS`."""
    return not record.getMessage().startswith(ADVERTISEMENTS)
