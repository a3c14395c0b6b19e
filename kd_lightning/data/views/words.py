"""NumberWords: the letters of a digit's name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError
from kd_lightning.core.stateless_random import stateless_uniform

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTH = max(map(len, WORDS))
LETTERS = 27
"""a to z; 0 is the end of a shorter word."""


class NumberWords(nn.Module):
    """The digit's English name, letter by letter, with misspellings that the sample's number draws.

    Args:
        misspelled: Probability of each letter to be replaced by another.

    Shapes:
        Output float32 (N, 5, 27): each letter, one-hot; shorter words end in zeros.

    Raises:
        UsageError: `misspelled` is not in [0, 1].

    Example:
        >>> word = NumberWords(0.0).of_samples(torch.zeros(1, 1, 28, 28), torch.tensor([2]), torch.tensor([0]))
        >>> "".join(" abcdefghijklmnopqrstuvwxyz"[letter] for letter in word[0].argmax(dim=1))
        'two  '
    """

    def __init__(self, misspelled: float = 0.2) -> None:
        super().__init__()
        if not 0 <= misspelled <= 1:
            raise UsageError(f"misspelled={misspelled} must lie in [0, 1]")
        self.misspelled = misspelled

    def of_samples(self, images: Tensor, labels: Tensor, index: Tensor, test: bool = False) -> Tensor:
        """The words of the samples' digits."""
        spelled = torch.tensor([[ord(c) - 96 if c != " " else 0 for c in word.ljust(LENGTH)] for word in WORDS])
        words = spelled.to(labels.device)[labels]
        wrong = (stateless_uniform(index, LENGTH, salt=2 + test) < self.misspelled) & (words > 0)
        other = (stateless_uniform(index, LENGTH, salt=4 + test) * (LETTERS - 1)).long() + 1
        return functional.one_hot(torch.where(wrong, other, words), LETTERS).float()
