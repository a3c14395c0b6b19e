"""Networks that answer questions about a scene, or describe it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError


class SceneEncoder(nn.Module):
    """Two convolutions with pooling; what they give in each of ``across^2`` equal parts of the picture is an object.

    Args:
        width: Channels.
        across: Parts of a side of the picture, which must divide 8.

    Shapes:
        scene (N, 1, H, W); output (N, objects, features), the parts in the order of reading.

    Raises:
        UsageError: `across` does not divide 8.
    """

    def __init__(self, width: int = 32, across: int = 2) -> None:
        super().__init__()
        if across < 1 or 8 % across:
            raise UsageError(f"across={across} does not divide the 8 places of a side: give 1, 2, 4 or 8")
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(8),
        )
        self.side = 8 // across
        self.objects = across**2
        self.features = width * self.side**2

    def forward(self, scene: Tensor) -> Tensor:
        """What is seen."""
        return functional.unfold(self.convolutions(scene), self.side, stride=self.side).transpose(1, 2)


class LabelEncoder(nn.Module):
    """The labels of a scene's digits, one-hot: what a teacher is told. Each digit is an object.

    Args:
        digits: How many there are.

    Shapes:
        digits int64 (N, digits); output (N, digits, 10).
    """

    def __init__(self, digits: int = 4) -> None:
        super().__init__()
        self.objects = digits
        self.features = 10

    def forward(self, digits: Tensor) -> Tensor:
        """What is known."""
        return functional.one_hot(digits, 10).float()


class RelationNetwork(nn.Module):
    """Answers a question about the objects that an encoder sees, by how every two of them relate.

    ``f(sum_ij g(o_i, o_j, q))``, a relation network: Adam Santoro et al.: A simple neural network module for relational
    reasoning. NeurIPS 2017 (arXiv:1706.01427). q is the last state of a GRU over the question's words, and o_i an
    object's features in a layer with a vector for its place. ``relation`` is a layer: what f's first gives.

    Args:
        encoder: Of what the question is about; it has a number of ``objects`` and of ``features``.
        words: Size of the questions' vocabulary.
        width: Of every layer and of the state.
        answers: Width of the logits.

    Shapes:
        What the encoder takes, by its name, and question int64 (N, L); output: logits (N, answers).

    Raises:
        UsageError: The encoder does not say how many objects and features it gives.

    Example:
        >>> network = RelationNetwork(LabelEncoder(), words=20)
        >>> network(digits=torch.zeros(2, 4, dtype=torch.int64), question=torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, encoder: nn.Module, words: int = 20, width: int = 128, answers: int = 10) -> None:
        super().__init__()
        objects, features = _given_by(encoder)
        self.encoder = encoder
        self.words = nn.Embedding(words, 32)
        self.reader = nn.GRU(32, width, batch_first=True)
        self.object = nn.Sequential(nn.Linear(features, width), nn.ReLU())
        self.places = nn.Parameter(torch.randn(objects, width))
        self.relate = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.relation = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.classifier = nn.Linear(width, answers)

    def forward(self, question: Tensor, **scene: Tensor) -> Tensor:
        """The logits of the answers."""
        asked = self.reader(self.words(question))[0][:, -1]
        objects = self.object(self.encoder(**scene)) + self.places
        n, count, width = objects.shape
        one = objects.unsqueeze(2).expand(n, count, count, width)
        other = objects.unsqueeze(1).expand(n, count, count, width)
        question_of_both = asked[:, None, None].expand(n, count, count, -1)
        related = self.relate(torch.cat((one, other, question_of_both), dim=3)).sum(dim=(1, 2))
        return self.classifier(self.relation(related))


class Captioner(nn.Module):
    """Says in a number of words what an encoder sees; a GRU gives them one after the other.

    Args:
        encoder: Of what is described; it has a number of ``objects`` and of ``features``.
        words: Size of the captions' vocabulary.
        length: Words in a caption.
        width: Of the state.

    Shapes:
        What the encoder takes, by its name; output: logits (N, length, words).

    Raises:
        UsageError: The encoder does not say how many objects and features it gives.

    Example:
        >>> Captioner(SceneEncoder(4))(scene=torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2, 4, 10])
    """

    def __init__(self, encoder: nn.Module, words: int = 10, length: int = 4, width: int = 128) -> None:
        super().__init__()
        objects, features = _given_by(encoder)
        self.encoder = encoder
        self.first = nn.Linear(objects * features, width)
        self.places = nn.Parameter(torch.randn(length, 32))
        self.speaker = nn.GRU(32, width, batch_first=True)
        self.classifier = nn.Linear(width, words)

    def forward(self, **scene: Tensor) -> Tensor:
        """The logits of the words."""
        seen = self.first(self.encoder(**scene).flatten(1)).tanh()
        said, _ = self.speaker(self.places.expand(len(seen), -1, -1).contiguous(), seen.unsqueeze(0))
        return self.classifier(said)


def _given_by(encoder: nn.Module) -> tuple[int, int]:
    objects, features = getattr(encoder, "objects", None), getattr(encoder, "features", None)
    if not isinstance(objects, int) or not isinstance(features, int):
        raise UsageError(f"{type(encoder).__name__} must say what it gives: set its `objects` and its `features`")
    return objects, features
