"""Networks that answer questions about a scene, or describe it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SceneEncoder(nn.Module):
    """Two convolutions with pooling, and four quarters of features.

    Args:
        width: Channels.

    Shapes:
        scene (N, 1, H, W); output (N, features).
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(8),
        )
        self.features = 64 * width

    def forward(self, scene: Tensor) -> Tensor:
        """What is seen."""
        return self.convolutions(scene).flatten(1)


class DigitsEncoder(nn.Module):
    """The labels of a scene's digits, one-hot: what a teacher is told.

    Args:
        digits: How many there are.

    Shapes:
        digits int64 (N, digits); output (N, features).
    """

    def __init__(self, digits: int = 4) -> None:
        super().__init__()
        self.features = 10 * digits

    def forward(self, digits: Tensor) -> Tensor:
        """What is known."""
        return functional.one_hot(digits, 10).flatten(1).float()


class Answerer(nn.Module):
    """Answers a question about what an encoder sees: ``classifier(relu(U (tanh(V f) * tanh(W q))))``.

    Features f of the scene and the last state q of a GRU over the question's words meet in a product, as in Jin-Hwa
    Kim et al.: Hadamard Product for Low-rank Bilinear Pooling. ICLR 2017 (arXiv:1610.04325). ``product`` is a layer.

    Args:
        encoder: Of what the question is about; it has a number of ``features``.
        words: Size of the questions' vocabulary.
        width: Of the product and of the state.
        answers: Width of the logits.

    Shapes:
        What the encoder takes, by its name, and question int64 (N, L); output: logits (N, answers).

    Example:
        >>> network = Answerer(DigitsEncoder(), words=20)
        >>> network(digits=torch.zeros(2, 4, dtype=torch.int64), question=torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, encoder: nn.Module, words: int = 20, width: int = 128, answers: int = 10) -> None:
        super().__init__()
        self.encoder = encoder
        self.words = nn.Embedding(words, 32)
        self.reader = nn.GRU(32, width, batch_first=True)
        self.of_scene = nn.Linear(_features(encoder), width)
        self.of_question = nn.Linear(width, width)
        self.product = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.classifier = nn.Linear(width, answers)

    def forward(self, question: Tensor, **scene: Tensor) -> Tensor:
        """The logits of the answers."""
        read = self.reader(self.words(question))[0][:, -1]
        met = self.of_scene(self.encoder(**scene)).tanh() * self.of_question(read).tanh()
        return self.classifier(self.product(met))


class Captioner(nn.Module):
    """Says in a number of words what an encoder sees; a GRU gives them one after the other.

    Args:
        encoder: Of what is described; it has a number of ``features``.
        words: Size of the captions' vocabulary.
        length: Words in a caption.
        width: Of the state.

    Shapes:
        What the encoder takes, by its name; output: logits (N, length, words).

    Example:
        >>> Captioner(SceneEncoder(4))(scene=torch.zeros(2, 1, 56, 56)).shape
        torch.Size([2, 4, 10])
    """

    def __init__(self, encoder: nn.Module, words: int = 10, length: int = 4, width: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.first = nn.Linear(_features(encoder), width)
        self.places = nn.Parameter(torch.randn(length, 32))
        self.speaker = nn.GRU(32, width, batch_first=True)
        self.classifier = nn.Linear(width, words)

    def forward(self, **scene: Tensor) -> Tensor:
        """The logits of the words."""
        seen = self.first(self.encoder(**scene)).tanh()
        said, _ = self.speaker(self.places.expand(len(seen), -1, -1).contiguous(), seen.unsqueeze(0))
        return self.classifier(said)


def _features(encoder: nn.Module) -> int:
    features = getattr(encoder, "features", None)
    if not isinstance(features, int):
        raise ValueError(f"{type(encoder).__name__} does not say how many features it gives: set its `features`")
    return features
