"""Rows, order and random draws of a seed, pinned: published comparisons name a seed, and old runs must resume."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning.data import MNIST, MNISTDataModule, SameClassPairs


def noise(image: Tensor) -> Tensor:
    return image + torch.rand(1)


def data(**changes) -> MNISTDataModule:
    return MNISTDataModule(**{"batch_size": 6, "train_size": 100, "seed": 3} | changes)


def test_the_default_split_and_its_first_epoch():
    everything = MNISTDataModule()
    train, val = everything.split
    assert train[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert val[:8].tolist() == [17, 29, 49, 55, 62, 78, 81, 90]
    assert val.sum() == 150_405_425
    epoch = torch.cat([index for _, _, index in everything.train_dataloader()])
    assert epoch[:8].tolist() == [18736, 17576, 3585, 38958, 24273, 44231, 150, 39570]
    assert epoch[-8:].tolist() == [25762, 3977, 44205, 50116, 30838, 41298, 24989, 11764]
    assert (epoch * torch.arange(1, len(epoch) + 1)).sum() == 45_253_359_370_375  # the order of all 54,976


def test_a_hundred_images_of_another_seed():
    train, val = data().split
    assert train[:12].tolist() == [243, 1712, 1799, 2408, 2524, 2909, 3354, 3444, 3950, 5069, 5526, 6030]
    assert val[:12].tolist() == [10, 31, 35, 40, 51, 53, 57, 67, 81, 83, 95, 104]
    assert (train.sum(), val.sum()) == (3_123_302, 149_953_631)


def test_two_epochs_of_passes_and_one_of_a_stated_length():
    loader = data().train_dataloader()
    epochs = [[index.tolist() for _, _, index in loader] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [16, 16]
    assert epochs[0][0] == [57550, 9962, 20563, 13848, 14731, 38887]
    assert epochs[0][-1] == [38557, 9941, 56445, 54183, 13251, 5069]
    assert epochs[1][0] == [5069, 25304, 24651, 36578, 18527, 6727]
    assert epochs[1][-1] == [13848, 9941, 16743, 2909, 18706, 46230]
    steps = [index.tolist() for _, _, index in data(steps_per_epoch=40).train_dataloader()]
    assert len(steps) == 40
    assert steps[0] == [57550, 9962, 20563, 13848, 14731, 38887]
    assert steps[17] == [18706, 18276, 53648, 36153, 2909, 43402]
    assert steps[39] == [1712, 5526, 47400, 11849, 38887, 56282]


@pytest.mark.parametrize(
    ("changes", "rows", "draws"),
    [
        (
            {},
            [57550, 9962, 20563, 13848, 14731, 38887],
            [0.9933713674, 0.9565515518, 0.8336711526, 0.2355778217, 0.9756377339, 0.6524698734],
        ),
        (
            {"num_augmented_views": 2},
            [57550, 9962, 20563, 13848, 14731, 38887],
            [0.9906032681, 0.9684833884, 0.7519366145, 0.4680303335, 0.7383521199, 0.4117473364],
        ),
    ],
)
def test_an_augmentation_draws_the_same_numbers(changes, rows, draws):
    x, _, index = next(iter(data(augmentation=noise, **changes).train_dataloader()))
    assert index.tolist() == rows
    assert x[:, 0, 0, 0].tolist() == pytest.approx(draws, abs=1e-9)  # the corner of a digit is black


def test_the_second_view_of_an_image_draws_other_numbers_and_the_same_each_time():
    loader = data(augmentation=noise, num_augmented_views=2).train_dataloader()
    _, second = [*loader], [*loader]
    x, _, index = second[0]
    assert index.tolist() == [5069, 25304, 24651, 36578, 18527, 6727]
    drawn = [0.6840882897, 0.5650620460, 0.9294679165, 0.8130095005, 0.0862324834, 0.8053204417]
    assert x[:, 0, 0, 0].tolist() == pytest.approx(drawn, abs=1e-9)


def test_pairs_of_a_class():
    pairs = SameClassPairs(MNIST(), batch_size=4, train_size=100, seed=3)
    first, second = [index.tolist() for _, _, index in pairs.train_dataloader()][:2]
    assert first == [57550, 9962, 20563, 13848, 48909, 56282, 37190, 33552]
    assert second == [14731, 38887, 20572, 35538, 20572, 9941, 3950, 38831]
