"""Scenes of several digits, with questions and captions about them."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.data.draws import choice, uniform
from kd_lightning.data.idx import LabelledImages
from kd_lightning.data.mnist import NUM_CLASSES
from kd_lightning.data.tensors import Batch
from kd_lightning.data.views import ViewsDataModule

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
IN_A_SCENE = 4


class DigitScenesDataModule(ViewsDataModule):
    """Four digits of MNIST in two rows, and something to say about them. Questions and captions are **synthetic**.

    A batch is a mapping: ``seen``, what a student has, the picture and, for questions, the words of one of seven;
    ``told``, what a teacher has, the digits' labels in place of the picture; ``target`` and ``index``. The scene of a
    sample has its own digit at the top left and three that are drawn by its number, from training, validation or test
    as it is itself: there are as many scenes as digits, the same in every epoch and on any number of processes. So it
    is with the question.

    With ``about: answers`` the target is the answer, a digit or a number (N,). With ``about: captions`` it is the
    digits' names in the order of reading, (N, 4), as indices of the ten number words.

    Args:
        about: ``answers`` or ``captions``.
        shuffled: Tell the teacher of another scene while training: that of the sample before in the batch.
        batch_size: Training scenes a batch, on each process.
        train_size: Digits to make training scenes of; all that are not held out if not given.
        val_size: Digits to make validation scenes of; with 0 there is none.
        seed: Chooses the digits and their order.
        drop_last: Leave out what is left of a pass after the last full global batch; of no effect with `epoch_steps`.
        epoch_steps: Full batches in an epoch; without it, an epoch is one pass.
        eval_batch_size: At most this many scenes a batch outside training, on each process.

    Raises:
        UsageError: `about` is neither; or as for MNIST.

    Example:
        >>> batch = next(iter(DigitScenesDataModule("captions").test_dataloader()))
        >>> batch["seen"]["scene"].shape, batch["told"]["digits"].shape, batch["target"].shape
        (torch.Size([250, 1, 56, 56]), torch.Size([250, 4]), torch.Size([250, 4]))
    """

    def __init__(
        self,
        about: Literal["answers", "captions"],
        shuffled: bool = False,
        batch_size: int = 64,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        drop_last: bool = True,
        epoch_steps: int | None = None,
        eval_batch_size: int = 250,
    ) -> None:
        super().__init__(
            batch_size,
            train_size,
            val_size,
            seed,
            drop_last=drop_last,
            epoch_steps=epoch_steps,
            eval_batch_size=eval_batch_size,
            channels=1,
        )
        if about not in ("answers", "captions"):
            raise UsageError(f"about={about!r} is neither 'answers' nor 'captions'")
        self.about = about
        self.shuffled = shuffled
        for given in ("channels", "views"):
            del self.hparams[given]
        self.hparams.update({"about": about, "shuffled": shuffled})

    def _views_of(self, batch: Batch) -> dict[str, Any]:
        return self._shown(batch, self.train_set, self.split[0])

    def _val_views(self, batch: Batch) -> dict[str, Any]:
        return self._shown(batch, self.train_set, self.split[1])

    def _test_views(self, batch: Batch) -> dict[str, Any]:
        return self._shown(batch, self.test_set, self._test_rows)

    @cached_property
    def _test_rows(self) -> Tensor:
        return torch.arange(len(self.test_set.labels))

    def _shown(self, batch: Batch, data: LabelledImages, rows: Tensor) -> dict[str, Any]:
        x, y, index = batch
        drawn = (uniform(index, IN_A_SCENE - 1, salt=8) * len(rows)).long()
        others = self._beside(rows, batch)[drawn]
        images, labels = self._resident(data)
        digits = torch.cat((y.unsqueeze(1), labels[others]), dim=1)
        quarters = torch.cat((x.unsqueeze(1), images[others].div(255)), dim=1)
        across = [torch.cat((quarters[:, i], quarters[:, i + 1]), dim=3) for i in (0, 2)]
        seen, told = {"scene": torch.cat(across, dim=2)}, {"digits": digits}
        if self.about == "captions":
            return {"seen": seen, "told": told, "target": digits, "index": index}
        asked = choice(index, len(QUESTIONS), salt=7)
        question = self._beside(_spelled(), batch)[asked]
        answer = _answers(digits).gather(1, asked.unsqueeze(1)).squeeze(1)
        return {
            "seen": seen | {"question": question},
            "told": told | {"question": question},
            "target": answer,
            "index": index,
        }

    def _train_views(self, batch: Batch) -> dict[str, Any]:
        scene = self._views_of(batch)
        if self.shuffled:
            scene["told"] = {name: value.roll(1, dims=0) for name, value in scene["told"].items()}
        return scene


@cache
def _spelled() -> Tensor:
    """The questions' words as indices of the vocabulary, (questions, words)."""
    spelled = [torch.tensor([VOCABULARY.index(word) for word in question.split()]) for question in QUESTIONS]
    longest = max(map(len, spelled))
    return torch.stack([functional.pad(words, (0, longest - len(words))) for words in spelled])


def _answers(digits: Tensor) -> Tensor:
    """To every question, (N, questions); all are below ten."""
    largest, smallest, even = digits.amax(dim=1), digits.amin(dim=1), (digits % 2 == 0).sum(dim=1)
    answers = torch.cat((digits, torch.stack((largest, smallest, even), dim=1)), dim=1)
    assert answers.max() < NUM_CLASSES
    return answers
