"""A recurrent classifier of sequences, such as the rows of an image."""

from __future__ import annotations

from torch import Tensor, nn


class GRUClassifier(nn.Module):
    """Classify a sequence by the last state of a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

    Args:
        in_features: Width of one element; for the rows of an image, the width of the image.
        width: Width of the state.
        num_classes: Width of the logits.

    Shapes:
        Input (N, L, in_features); output: logits (N, num_classes). ``classifier`` is the last layer.

    Example:
        >>> import torch
        >>> GRUClassifier()(torch.zeros(2, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_features: int = 28, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.recurrent = nn.GRU(in_features, width, batch_first=True)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the logits, (N, num_classes)."""
        return self.classifier(self.recurrent(rows)[0][:, -1])
