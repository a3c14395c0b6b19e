"""Filters for messages that carry no news: Lightning's advertisements, and warnings about intended settings."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from kd_lightning.core.expected_messages import ADVERTISEMENTS, LOGGERS, WARNINGS

LINES = (
    *ADVERTISEMENTS,
    "\nDetected KeyboardInterrupt",  # the command line prints its own line
    "An KeyboardInterrupt was raised",
    "An SIGTERMException was raised",
)
"""Beginnings of lines that Lightning logs."""
ANNOUNCEMENTS = (
    "Seed set to",
    "GPU available",
    "TPU available",
    "HPU available",
    "IPU available",
    "Using 16bit",
    "Using bf",
)
"""Beginnings of lines that Lightning logs before a run starts: an error that ends it before then stands alone."""
_held: list[logging.LogRecord] = []


@contextmanager
def expected_messages_hidden() -> Generator[None]:
    """Hide exactly these messages, and tracebacks of errors that are raised again, while the context is open.

    Announcements are kept until `show_announcements`.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(ANNOUNCEMENTS):
            _held.append(record)
            return False
        return not message.startswith(LINES)

    def unless_raised_again(error: threading.ExceptHookArgs) -> None:
        # TensorBoard's writer raises it in the main thread as well, at the next value
        if type(error.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            print_traceback(error)

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(is_shown)
    print_traceback, threading.excepthook = threading.excepthook, unless_raised_again
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        threading.excepthook = print_traceback
        for logger in loggers:
            logger.removeFilter(is_shown)
        _held.clear()


def show_announcements() -> None:
    """Log what Lightning announced before the run started, once."""
    for record in _held:
        logging.getLogger(record.name).callHandlers(record)
    _held.clear()
