from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning import UsageError
from kd_lightning.data import MNIST, ColouredDigits, ResidentDataModule
from kd_lightning.data.sources.base import LabeledImages
from kd_lightning.data.sources.coloured_digits import draw_colours

GROUNDS = ("dark", "any")


@pytest.fixture(scope="module", params=GROUNDS)
def coloured(request):
    """The kind of the grounds, and its test set."""
    return request.param, ColouredDigits(request.param).test()


def pure(images: Tensor, grey: Tensor) -> tuple[Tensor, Tensor]:
    """The colours of ground and digit, (N, 3) each, that the images have in a corner and at the brightest ink."""
    brightest = grey.flatten(1).argmax(dim=1)
    inner = images[:, :, 2:-2, 2:-2].flatten(2)
    return images[:, :, 0, 0].int(), inner.gather(2, brightest.view(-1, 1, 1).expand(-1, 3, 1)).squeeze(2).int()


def test_an_image_is_its_digit_in_two_colours(coloured):
    """Pixel by pixel as the formula says, in Python's numbers."""
    ground, test_set = coloured
    plain = MNIST().test()
    assert test_set.images.shape == (10_000, 3, 32, 32)
    assert torch.equal(test_set.labels, plain.labels)
    grounds, digits = draw_colours(torch.arange(10_000), ground, salt=11)
    for n in (0, 1, 4999, 5000, 9999):
        grey = torch.zeros(32, 32, dtype=torch.uint8)
        grey[2:30, 2:30] = plain.images[n, 0]
        for channel in range(3):
            low, high = grounds[n, channel].item(), digits[n, channel].item()
            expected = [[round(((255 - m) * low + m * high) / 255) for m in row] for row in grey.tolist()]
            assert test_set.images[n, channel].tolist() == expected


def test_channels_differ_from_each_other_and_digits_from_their_grounds(coloured):
    kind, test_set = coloured
    grey = MNIST().test().images
    full = grey.flatten(1).amax(dim=1) == 255
    ground, digit = pure(test_set.images[full], grey[full])
    assert len(ground) > 8900
    brighter = digit > ground
    if kind == "dark":
        assert (ground.max(), digit.min()) == (85, 170)
        assert brighter.all()
    else:  # in some channels and not in others, as often as not
        assert (ground - digit).abs().min() >= 90
        assert brighter.float().mean(dim=0).tolist() == pytest.approx([0.5] * 3, abs=0.02)
        assert 0.7 < (brighter.any(dim=1) & ~brighter.all(dim=1)).float().mean() < 0.8
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (test_set.images[:, first] != test_set.images[:, second]).flatten(1).any(dim=1).float().mean() > 0.99
    correlation = torch.corrcoef(torch.cat((ground, digit), dim=1).T.float())
    assert (correlation[:3, :3] - torch.eye(3)).abs().max() < 0.05  # no channel says what another is


def test_colours_say_nothing_about_the_digit(coloured):
    """The mean and spread of each colour is that of all digits, and a classifier of the colours alone guesses."""
    kind, test_set = coloured
    colours = torch.cat(draw_colours(torch.arange(10_000), kind, salt=11), dim=1).float()
    labels = test_set.labels
    for label in range(10):
        own = colours[labels == label]
        error = colours.std(dim=0) / len(own) ** 0.5
        assert ((own.mean(dim=0) - colours.mean(dim=0)).abs() < 4.5 * error).all()
    train, test = slice(0, 7000), slice(7000, None)
    low, high = colours.amin(dim=0), colours.amax(dim=0)
    bins = ((colours - low) / (high - low + 1) * 4).long()  # four levels of each of six numbers
    keys = (bins * 4 ** torch.arange(6)).sum(dim=1)
    counts = torch.zeros(4**6, 10).index_put_((keys[train], labels[train]), torch.ones(7000), accumulate=True)
    assert (counts[keys[test]].argmax(dim=1) == labels[test]).float().mean() < 0.15
    nearest = torch.cdist(colours[test], colours[train]).argmin(dim=1)
    assert (labels[train][nearest] == labels[test]).float().mean() < 0.15


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_are_a_function_of_the_samples_number_alone(ground):
    index = torch.tensor([7, 123, 59_999])
    whole = draw_colours(torch.arange(60_000), ground, salt=10)
    for all_of_them, some in zip(whole, draw_colours(index, ground, salt=10), strict=True):
        assert torch.equal(all_of_them[index], some)
    ranges = {"dark": [(0, 85), (170, 255)], "any": [(0, 255), (0, 255)]}
    assert [(colours.min(), colours.max()) for colours in whole] == ranges[ground]
    assert not torch.equal(whole[0][:10], draw_colours(torch.arange(10), ground, salt=11)[0])  # those of the test set


def test_its_bytes_are_the_same_everywhere(coloured):
    ground, test_set = coloured
    pixel, total = {"dark": ([223, 229, 201], 1_831_859_543), "any": ([84, 177, 119], 3_907_029_458)}[ground]
    assert test_set.images[7, :, 16, 16].tolist() == pixel
    assert test_set.images.sum(dtype=torch.int64) == total


def test_another_ground_is_refused():
    with pytest.raises(UsageError, match="ground='light' must be one of dark, any"):
        ColouredDigits("light")  # pyright: ignore[reportArgumentType]


class Fewer(ColouredDigits):
    """The test digits, to train on in little memory."""

    num_train = 10_000

    def train(self) -> LabeledImages:
        return self.test()


def test_it_is_trained_on_like_any_other():
    data = ResidentDataModule(Fewer(), train_size=100, num_channels=3, batch_size=20)
    x, y, index = next(iter(data.train_dataloader()))
    assert x.shape == (20, 3, 32, 32)
    assert torch.equal(y, MNIST().test().labels[index])
    assert torch.equal((x * 255).round().byte(), data.train_set.images[index])
