"""A network that answers questions about a scene from the relations between its objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.networks.scenes.encoders import encoder_sizes


class RelationNetwork(nn.Module):
    """Answer a question about a scene from the relations between every two of its objects.

    logits = f(sum_ij g(o_i, o_j, q))

    q is the last state of a GRU over the question's words. o_i is a linear layer of an object's features plus a learned
    position embedding. ``relation`` is the first layer of f, and can be tapped.

    Adam Santoro et al.: A simple neural network module for relational reasoning. NeurIPS 2017 (arXiv:1706.01427).

    Args:
        encoder: Encodes the scene; its attributes ``objects`` and ``features`` are the size of its output.
        words: Size of the questions' vocabulary.
        width: Width of every layer and of the GRU's state.
        answers: Width of the logits.

    Shapes:
        The encoder's input by its name, and question int64 (N, L); output: logits (N, answers).

    Raises:
        UsageError: The encoder does not declare ``objects`` and ``features``.

    Example:
        >>> from kd_lightning.networks import LabelEncoder
        >>> network = RelationNetwork(LabelEncoder(), words=20)
        >>> network(digits=torch.zeros(2, 4, dtype=torch.int64), question=torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, encoder: nn.Module, words: int = 20, width: int = 128, answers: int = 10) -> None:
        super().__init__()
        objects, features = encoder_sizes(encoder)
        self.encoder = encoder
        self.word_embeddings = nn.Embedding(words, 32)
        self.question_encoder = nn.GRU(32, width, batch_first=True)
        self.project = nn.Sequential(nn.Linear(features, width), nn.ReLU())
        self.position_embeddings = nn.Parameter(torch.randn(objects, width))
        self.pair = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.relation = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.classifier = nn.Linear(width, answers)

    def forward(self, question: Tensor, **scene: Tensor) -> Tensor:
        """Return the logits of the answers, (N, answers)."""
        state = self.question_encoder(self.word_embeddings(question))[0][:, -1]
        objects = self.project(self.encoder(**scene)) + self.position_embeddings
        n, count, width = objects.shape  # n = batch, count = objects
        first = objects.unsqueeze(2).expand(n, count, count, width)
        second = objects.unsqueeze(1).expand(n, count, count, width)
        states = state[:, None, None].expand(n, count, count, -1)
        related = self.pair(torch.cat((first, second, states), dim=3)).sum(dim=(1, 2))
        return self.classifier(self.relation(related))
