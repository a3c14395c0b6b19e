"""A network that describes a scene in words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.networks.scenes.encoders import encoder_sizes


class Captioner(nn.Module):
    """Describe a scene in a fixed number of words: an encoder, then a GRU that outputs one word after the other.

    Args:
        encoder: Encodes the scene; its attributes ``objects`` and ``features`` are the size of its output.
        words: Size of the captions' vocabulary.
        length: Words in a caption.
        width: Width of the GRU's state.

    Shapes:
        The encoder's input by its name; output: logits (N, length, words).

    Raises:
        UsageError: The encoder does not declare ``objects`` and ``features``.

    Example:
        >>> from kd_lightning.networks import SceneEncoder
        >>> Captioner(SceneEncoder(4))(scene=torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2, 4, 10])
    """

    def __init__(self, encoder: nn.Module, words: int = 10, length: int = 4, width: int = 128) -> None:
        super().__init__()
        objects, features = encoder_sizes(encoder)
        self.encoder = encoder
        self.initial_state = nn.Linear(objects * features, width)
        self.position_embeddings = nn.Parameter(torch.randn(length, 32))
        self.decoder = nn.GRU(32, width, batch_first=True)
        self.classifier = nn.Linear(width, words)

    def forward(self, **scene: Tensor) -> Tensor:
        """Return the logits of the words, (N, length, words)."""
        state = self.initial_state(self.encoder(**scene).flatten(1)).tanh()
        positions = self.position_embeddings.expand(len(state), -1, -1).contiguous()
        outputs, _ = self.decoder(positions, state.unsqueeze(0))
        return self.classifier(outputs)
