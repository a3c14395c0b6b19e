"""Spoken digits: what a network hears while another sees the digit."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.data.draws import choice

FILE = Path(__file__).parent / "files" / "speech" / "digits.npz"


class SpokenDigits(nn.Module):
    """The digit's name, said by one of many voices: a log-mel spectrogram. The speech is **synthetic**, by espeak-ng.

    Which of 192 manners of speaking a sample is said in is a matter of its number. Tests are said by eight voices that
    training has not heard. What ties sound and image together is the digit alone.

    Shapes:
        Output float32 (N, 1, 32, 32) in [0, 1]: 32 mel bands, from the lowest, and 32 frames of one second; 1 is the
        loudest place of a word and 0 is 80 dB below it.

    Example:
        >>> SpokenDigits().of_samples(torch.zeros(2, 1, 28, 28), torch.tensor([3, 7]), torch.tensor([0, 1])).shape
        torch.Size([2, 1, 32, 32])
    """

    def of_samples(self, images: Tensor, labels: Tensor, index: Tensor, test: bool = False) -> Tensor:
        """The spectrograms of what the samples are called."""
        spoken = _read("unseen" if test else "seen", labels.device)
        said = spoken[labels, choice(index, spoken.shape[1], salt=1)]
        return said.unsqueeze(1).float().div(255)


@cache
def _read(voices: str, device: torch.device) -> Tensor:
    """uint8 (digits, manners, bands, frames); 2 MB at most, kept where they are heard."""
    with np.load(FILE, allow_pickle=False) as file:
        return torch.from_numpy(file[voices]).to(device)
