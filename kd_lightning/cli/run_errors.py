"""The setting that caused an error of a constructor or a run, and one line about it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from kd_lightning.cli.components import locate_component
from kd_lightning.cli.config_errors import with_location
from kd_lightning.cli.extras import missing_module
from kd_lightning.cli.yaml_file import Setting
from kd_lightning.core.errors import InputRefusedError, OtherWeightsError, UsageError
from kd_lightning.core.failures import is_user_error, one_line, shortened
from kd_lightning.core.network_call import other_widths


def cause_of(error: BaseException) -> BaseException:
    """Return the error of a constructor that jsonargparse has wrapped, or the error itself."""
    while error.__cause__ and str(error).startswith("Does not validate against any of the Union"):
        error = error.__cause__
    return error


def usage_error(
    cause: BaseException, config: Any, settings: Sequence[Setting], ckpt_path: str | None
) -> UsageError | None:
    """Build the error that names the setting which caused another; None for a bug, which keeps its traceback.

    Args:
        cause: The error.
        config: The parsed configuration.
        settings: Everything that files and options set.
        ckpt_path: The checkpoint that was loaded.
    """
    if isinstance(cause.__cause__, ImportError):  # of a constructor, in the parser's words
        cause = cause.__cause__
    raised = cause.__cause__ if isinstance(cause, InputRefusedError) and cause.__cause__ else cause
    field, in_constructor = locate_component(raised, config)  # the network's own frames are in the error of torch
    message = one_line(cause)
    if isinstance(cause, OtherWeightsError):
        field, in_constructor, message = "ckpt_path", True, f"{ckpt_path}: {message}"
    elif message.startswith("Error(s) in loading state_dict"):  # of a module that is no Learner
        field, in_constructor = "ckpt_path", True
        details = shorten(message.partition(": ")[2], 300, placeholder=" ...")
        message = f"{ckpt_path} is not of these networks ({details}): name a checkpoint of this run"
    elif not is_user_error(cause):
        if problem := missing_module(cause):
            return UsageError(with_location(settings, field.split("."), problem) if field else problem)
        if name := _trainer_setting(cause, config.get("trainer", ())):
            field, in_constructor = f"trainer.{name}", True
        elif name := _unknown_argument(message, settings):
            field, in_constructor, message = name, True, f"there is no such argument ({message}): remove it"
        elif not in_constructor and field and isinstance(cause, RuntimeError) and (remedy := other_widths(message)):
            in_constructor, message = True, f"its inputs do not fit: {message}{remedy}"
    of_arguments = in_constructor and isinstance(cause, ValueError | TypeError | RuntimeError)
    if not is_user_error(cause) and not of_arguments:
        return None
    message = shortened(message, 600)
    if named := re.match(r"([a-z]\w*)=", message):
        field += f".{named[1]}"
    return UsageError(with_location(settings, field.split("."), message) if field else message)


def _trainer_setting(error: BaseException, names: Any) -> str:
    """Return the setting of the trainer that an error of Lightning's own code names; empty for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = bool(frames) and "lightning" in Path(frames[-1].filename).parts
    found = re.findall(r"`(?:Trainer\()?([a-z]\w+)", str(error)) if own and isinstance(error, ValueError) else []
    return next((name for name in found if name in names), "")


def _unknown_argument(message: str, settings: Sequence[Setting]) -> str:
    """Return the place of an argument under ``dict_kwargs`` that its class does not take; empty if there is none."""
    named = re.search(r"got an unexpected keyword argument '(\w+)'", message)
    places = [setting.path for setting in settings if setting.path[-2:-1] == ("dict_kwargs",)]
    return next((".".join(place) for place in places if named and place[-1] == named[1]), "")
