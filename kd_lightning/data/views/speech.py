"""SpokenDigits: the audio of a digit's name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.core.stateless_random import stateless_randint

FILE = Path(__file__).parents[1] / "files" / "speech" / "digits.npz"


class SpokenDigits(nn.Module):
    """Log-mel spectrogram of the digit's name, spoken by one of many voices. The speech is **synthetic**, by espeak-ng.

    The sample's number chooses one of 192 voice settings. Test samples are spoken by eight voices that training
    does not have. Sound and image share the digit and nothing else.

    Shapes:
        Output float32 (N, 1, 32, 32) in [0, 1]: 32 mel bands, from the lowest, and 32 frames of one second; 1 is the
        loudest place of a word and 0 is 80 dB below it.

    Example:
        >>> SpokenDigits().of_samples(torch.zeros(2, 1, 28, 28), torch.tensor([3, 7]), torch.tensor([0, 1])).shape
        torch.Size([2, 1, 32, 32])
    """

    def of_samples(self, images: Tensor, labels: Tensor, index: Tensor, test: bool = False) -> Tensor:
        """The spectrograms of the samples' digits."""
        spoken = _read("unseen" if test else "seen", labels.device)
        chosen = spoken[labels, stateless_randint(index, spoken.shape[1], salt=1)]
        return chosen.unsqueeze(1).float().div(255)


@cache
def _read(voices: str, device: torch.device) -> Tensor:
    """uint8 (digits, manners, bands, frames); 2 MB at most, kept on the device of the batches."""
    with np.load(FILE, allow_pickle=False) as file:
        return torch.from_numpy(file[voices]).to(device)
