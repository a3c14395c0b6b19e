"""The callbacks of a configuration, built apart from the model's random numbers."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.seed import isolate_rng


def build_callbacks(parser: LightningArgumentParser, config: Namespace) -> list[Callback]:
    """Build the callbacks of a parsed configuration; the random numbers that follow are those without any.

    So a module starts from the same weights with and without a teacher that a callback brings.

    Args:
        parser: The parser of the configuration.
        config: The whole configuration.
    """
    given: Any = config["trainer"]["callbacks"]
    callbacks = [callback for callback in (given if isinstance(given, list) else [given]) if callback is not None]
    with isolate_rng():
        built = parser.instantiate_classes(Namespace(trainer=Namespace(callbacks=callbacks)))
    return built["trainer"]["callbacks"]
