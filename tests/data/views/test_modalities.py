"""Speech, words and motion: what a sample has beside its image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_lightning.core.stateless_random import stateless_uniform
from kd_lightning.data import (
    MNIST,
    MovingDigit,
    NumberWords,
    OpticalFlow,
    PairedViews,
    ResidentDataModule,
    SpokenDigits,
)
from kd_lightning.data.views.speech import _read
from kd_lightning.data.views.words import WORDS

ROWS = torch.arange(1000)
IMAGES = torch.zeros(1000, 1, 28, 28)
LABELS = ROWS % 10


def test_a_digit_has_its_own_name_and_tests_have_other_voices():
    said = SpokenDigits().of_samples(IMAGES, LABELS, ROWS)
    tested = SpokenDigits().of_samples(IMAGES, LABELS, ROWS, test=True)
    assert said.shape == tested.shape == (1000, 1, 32, 32)
    known = {name: _read(name, torch.device("cpu")).flatten(2) for name in ("seen", "unseen")}
    for name, heard in (("seen", said), ("unseen", tested)):
        for n in range(50):
            rows = (heard[n] * 255).round().to(torch.uint8).flatten()
            digits, _ = torch.nonzero((known[name] == rows).all(dim=2), as_tuple=True)
            assert digits.tolist() == [n % 10] * len(digits)
            assert len(digits) >= 1
    manners = {tuple(row) for row in said[LABELS == 3].flatten(1).tolist()}
    assert len(manners) > 50


def spelled(words: Tensor) -> list[str]:
    letters = " abcdefghijklmnopqrstuvwxyz"
    return ["".join(letters[i] for i in word).strip() for word in words.argmax(dim=2).tolist()]


def test_words_are_misspelled_as_often_as_asked():
    assert spelled(NumberWords(0.0).of_samples(IMAGES, LABELS, ROWS)) == [WORDS[n % 10] for n in range(1000)]
    seen = spelled(NumberWords(0.2).of_samples(IMAGES, LABELS, ROWS))
    letters = [(a, b) for n, word in enumerate(seen) for a, b in zip(word, WORDS[n % 10], strict=True)]
    assert sum(a != b for a, b in letters) / len(letters) == pytest.approx(0.2 * 25 / 26, abs=0.02)
    assert seen != spelled(NumberWords(0.2).of_samples(IMAGES, LABELS, ROWS, test=True))
    with pytest.raises(ValueError, match=r"misspelled=1\.5 must lie in"):
        NumberWords(1.5)


def square() -> Tensor:
    """Bright in the middle, with soft edges."""
    at = torch.arange(28.0) - 13.5
    side = torch.sigmoid(3 - at.abs())
    return (side[:, None] * side).expand(50, 1, 28, 28)


def centre(images: Tensor) -> Tensor:
    at = torch.arange(28.0) - 13.5
    mass = images.sum((1, 2))
    return torch.stack(((images * at).sum((1, 2)) / mass, (images * at[:, None]).sum((1, 2)) / mass), dim=1)


def test_a_digit_moves_by_its_row_and_is_centred_in_the_middle_frame():
    frames = MovingDigit(frames=3, pace=2.0).of_samples(square(), LABELS[:50], ROWS[:50])
    torch.testing.assert_close(frames[:, 1], square()[:, 0], atol=1e-5, rtol=0)
    drawn = stateless_uniform(ROWS[:50], 2, salt=6)
    pace, angle = 1 + drawn[:, 1], 2 * math.pi * drawn[:, 0]
    velocity = torch.stack((pace * angle.cos(), pace * angle.sin()), dim=1)
    for frame in range(3):
        torch.testing.assert_close(centre(frames[:, frame]), (frame - 1) * velocity, atol=0.02, rtol=0)


def test_the_flow_of_a_slow_digit_is_its_velocity_where_it_has_corners():
    flow = OpticalFlow(frames=2, pace=0.4, ridge=1e-6).of_samples(square(), LABELS[:50], ROWS[:50])
    drawn = stateless_uniform(ROWS[:50], 2, salt=6)
    pace, angle = 0.2 * (1 + drawn[:, 1]), 2 * math.pi * drawn[:, 0]
    assert flow.shape == (50, 2, 28, 28)
    corner = flow[:, :, 10, 10]
    torch.testing.assert_close(corner, torch.stack((pace * angle.cos(), pace * angle.sin()), 1), atol=0.05, rtol=0)
    still = OpticalFlow().between(square().expand(-1, 3, -1, -1))
    assert not still.any()


def test_flow_is_the_least_squares_of_naive_loops():
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(1, 2, 7, 6, generator=generator, dtype=torch.float64)
    found = OpticalFlow(frames=2, window=3, ridge=0.1).between(frames)[0]
    middle = frames[0].mean(0)

    def at(i: int, j: int) -> float:
        return middle[min(max(i, 0), 6), min(max(j, 0), 5)].item()

    for i, j in ((0, 0), (3, 2), (6, 5), (2, 0)):
        rows, times = [], []
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                a, b = i + di, j + dj
                if 0 <= a < 7 and 0 <= b < 6:
                    rows.append([(at(a, b + 1) - at(a, b - 1)) / 2, (at(a + 1, b) - at(a - 1, b)) / 2])
                    times.append(-(frames[0, 1, a, b] - frames[0, 0, a, b]).item())
        slopes, changes = torch.tensor(rows, dtype=torch.float64), torch.tensor(times, dtype=torch.float64)
        normal = slopes.T @ slopes + 0.1 * torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(found[:, i, j], torch.linalg.solve(normal, slopes.T @ changes))


def test_invalid_motions_are_refused():
    for kind, changes in ((MovingDigit, {"frames": 1}), (MovingDigit, {"pace": 0}), (OpticalFlow, {"frames": 1})):
        with pytest.raises(ValueError, match=r"frames=. must be at least 2 and pace=.* a finite number above 0"):
            kind(**changes)
    with pytest.raises(ValueError, match=r"window=4 must be odd and ridge=0\.01 above 0"):
        OpticalFlow(window=4)


def test_a_sample_has_all_of_them_whatever_batch_it_is_in():
    modalities = {"speech": SpokenDigits(), "words": NumberWords(), "frames": MovingDigit(), "flow": OpticalFlow()}
    seen = {}
    for size in (4, 8):
        data = ResidentDataModule(
            MNIST(), views=PairedViews(modalities), batch_size=size, train_size=64, val_size=0, seed=1
        )
        for batch in data.train_dataloader():
            for n, row in enumerate(batch["index"].tolist()):
                for name in modalities:
                    seen.setdefault((row, name), []).append(batch[name][n])
    assert len(seen) == 64 * 4
    for first, second in seen.values():
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
