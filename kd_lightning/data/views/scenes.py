"""DigitScenes: scenes of several digits, with questions and captions about them."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.stateless_random import stateless_randint, stateless_uniform
from kd_lightning.data.loaders import ImageBatch
from kd_lightning.data.views.base import BatchViews, Part

QUESTIONS = (
    "which digit is at the top left",
    "which digit is at the top right",
    "which digit is at the bottom left",
    "which digit is at the bottom right",
    "which digit is the largest",
    "which digit is the smallest",
    "how many digits are even",
)
VOCABULARY = ("", *sorted({word for question in QUESTIONS for word in question.split()}))
"""The words of the questions; 0 is the end of a shorter one."""
NUM_DIGITS = 4
"""Digits in a scene."""


class DigitScenes(BatchViews):
    """Four digits in two rows, with a question or a caption about them. Questions and captions are **synthetic**.

    A batch is a mapping: ``seen``, the student's input, is the picture and, for questions, the words of one of seven;
    ``told``, the teacher's, has the digits' labels in place of the picture; beside them are ``target`` and ``index``.
    The scene of a sample has its own digit at the top left and three that its number draws from the set that it is in:
    training, validation or test. So there are as many scenes as digits, equal in every epoch and on any number of
    processes. Its number draws the question, too. Only the sample's own image is augmented.

    Args:
        task: ``vqa``, visual question answering: the target is the answer, a digit or a number, int64 (N,).
            ``captioning``: the target is the digits in reading order, int64 (N, 4), as indices of ten number words.
        shuffled: Replace the teacher's scene in training by that of the sample before in the batch: an ablation.

    Raises:
        UsageError: `task` is not one of these.

    Example:
        >>> from kd_lightning.data import MNIST, ResidentDataModule
        >>> data = ResidentDataModule(MNIST(), views=DigitScenes("captioning"))
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["seen"]["scene"].shape, batch["told"]["digits"].shape, batch["target"].shape
        (torch.Size([250, 1, 56, 56]), torch.Size([250, 4]), torch.Size([250, 4]))
    """

    def __init__(self, task: Literal["vqa", "captioning"], shuffled: bool = False) -> None:
        if task not in ("vqa", "captioning"):
            raise UsageError(f"task={task!r} is neither 'vqa' nor 'captioning'")
        self.task = task
        self.shuffled = shuffled

    def __call__(self, batch: ImageBatch, part: Part) -> dict[str, Any]:
        """The scenes with their questions, and the targets."""
        x, y, index = batch
        others = part.rows[(stateless_uniform(index, NUM_DIGITS - 1, salt=8) * len(part.rows)).long()]
        digits = torch.cat((y.unsqueeze(1), part.data.labels[others]), dim=1)
        # n = batch, d = digits of a scene: (n, d, C, H, W)
        images = part.data.images[others].div(255).expand(-1, -1, *x.shape[1:])
        quarters = torch.cat((x.unsqueeze(1), images), dim=1)
        across = [torch.cat((quarters[:, i], quarters[:, i + 1]), dim=3) for i in (0, 2)]
        seen, told = {"scene": torch.cat(across, dim=2)}, {"digits": digits}
        if self.task == "captioning":
            return {"seen": seen, "told": told, "target": digits, "index": index}
        number = stateless_randint(index, len(QUESTIONS), salt=7)
        question = _encoded_questions(index.device)[number]
        answer = _answers(digits).gather(1, number.unsqueeze(1)).squeeze(1)
        return {
            "seen": seen | {"question": question},
            "told": told | {"question": question},
            "target": answer,
            "index": index,
        }

    def in_training(self, views: dict[str, Any]) -> dict[str, Any]:
        """Replace the teacher's scene by that of the sample before, if `shuffled`."""
        if not self.shuffled:
            return views
        return views | {"told": {name: value.roll(1, dims=0) for name, value in views["told"].items()}}


@cache
def _encoded_questions(device: torch.device) -> Tensor:
    """The questions' words as indices of the vocabulary, (questions, words)."""
    encoded = [torch.tensor([VOCABULARY.index(word) for word in question.split()]) for question in QUESTIONS]
    longest = max(map(len, encoded))
    return torch.stack([functional.pad(words, (0, longest - len(words))) for words in encoded]).to(device)


def _answers(digits: Tensor) -> Tensor:
    """The answers to all questions, (N, questions)."""
    largest, smallest, even = digits.amax(dim=1), digits.amin(dim=1), (digits % 2 == 0).sum(dim=1)
    return torch.cat((digits, torch.stack((largest, smallest, even), dim=1)), dim=1)
