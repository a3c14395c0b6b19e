"""Synthesizer: the base class of everything that makes images for `InversionDistiller`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.term import Term
from kd_lightning.core.terms import Terms
from kd_lightning.networks.image_format import ImageFormat
from kd_lightning.schemes.data_free.image_bank import ImageBank


class SynthesisRound(NamedTuple):
    """One round of synthesis: its number from 0, the number of images to make, and the networks and bank for them."""

    number: int
    num_images: int
    student: nn.Module
    """In eval."""
    teacher: nn.Module
    bank: ImageBank
    """It holds the images of all earlier rounds."""
    inputs: Any
    """The inputs of the training batch before which the round takes place."""


class Synthesizer(nn.Module, ABC):
    """Makes images, a round at a time, and tells which columns a bank of them has.

    Args:
        image_terms: The losses that an image minimises; a term of the teacher alone has ``student=None``.
        format: The shape and the values of the images.
        synthesis_steps: Steps of the optimizer of a round's images.

    Raises:
        UsageError: There are no terms, one has parameters, or `synthesis_steps` is below 1.
    """

    def __init__(self, image_terms: dict[str, Term], format: ImageFormat, synthesis_steps: int) -> None:
        super().__init__()
        if synthesis_steps < 1:
            raise UsageError(f"synthesis_steps={synthesis_steps} must be at least 1")
        self.image_terms = Terms(image_terms)
        if next(self.image_terms.parameters(), None) is not None:
            raise UsageError("image_terms: a loss with parameters would not learn them there: use one without")
        self.format = format
        self.synthesis_steps = synthesis_steps

    @abstractmethod
    def build(self, teacher: nn.Module) -> dict[str, Tensor]:
        """Build the parts that depend on the teacher, and return one row of zeros of each column of the bank.

        The columns ``images`` (1, C, H, W) and ``targets`` (1, ...) must be among them.
        """

    @abstractmethod
    def synthesize(self, given: SynthesisRound) -> dict[str, Tensor]:
        """Return the rows of a round by column, `num_images` of each; gradients are enabled."""
