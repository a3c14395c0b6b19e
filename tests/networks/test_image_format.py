from __future__ import annotations

import pytest
import torch

from kd_lightning.networks import Generator
from kd_lightning.networks.image_format import ImageFormat

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]


def test_images_are_normalized_pixels_of_the_range():
    images = ImageFormat((3, 4, 4), (0.0, 255.0), [127.5, 100.0, 50.0], [50.0, 60.0, 70.0])
    unit = torch.rand(5, 3, 4, 4)
    expected = (255 * unit - torch.tensor([127.5, 100.0, 50.0]).view(3, 1, 1)) / torch.tensor([50.0, 60.0, 70.0]).view(
        3, 1, 1
    )
    torch.testing.assert_close(images.from_unit(unit), expected)
    torch.testing.assert_close(images.to_unit(expected), unit)


def test_noise_fills_the_range_and_stays_in_it():
    torch.manual_seed(0)
    noise = ImageFormat((3, 16, 16), mean=MEAN, std=STD).noise(200)
    for channel, (m, s) in enumerate(zip(MEAN, STD, strict=True)):
        values = noise[:, channel] * s + m
        assert values.min().item() == pytest.approx(0, abs=1e-6)
        assert values.max().item() == pytest.approx(1, abs=1e-6)
        assert values.mean().item() == pytest.approx(0.5, abs=0.01)
        # clamped at one deviation to either side: 15.87 % of a Gaussian are beyond
        assert (values < 1e-6).float().mean().item() == pytest.approx(0.1587, abs=0.005)


def test_the_default_range_changes_no_bit():
    images = ImageFormat((1, 4, 4))
    unit = torch.rand(100, 1, 4, 4)
    assert torch.equal(images.from_unit(unit), unit)
    assert torch.equal(images.to_unit(unit), unit)


def test_a_generator_gives_normalized_images():
    torch.manual_seed(0)
    plain, normalized = Generator((3, 8, 8)), Generator((3, 8, 8), mean=MEAN, std=STD)
    normalized.load_state_dict(plain.state_dict())
    (noise,) = plain.draw(6, torch.device("cpu"))
    m, s = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    torch.testing.assert_close(normalized(noise), (plain(noise) - m) / s)


def test_a_generator_brings_each_channel_to_its_mean_and_deviation():
    generator = Generator((3, 8, 8), standardise=(MEAN, STD))
    images = generator(*generator.draw(64, torch.device("cpu"))).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(images.mean(dim=1), torch.tensor(MEAN), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(images.std(dim=1), torch.tensor(STD), rtol=1e-2, atol=1e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"image_shape=\[3, 32\] is not \[channels, height, width\]"):
        ImageFormat((3, 32))  # type: ignore
    with pytest.raises(ValueError, match=r"value_range=\(1.0, 0.0\) must be two finite numbers"):
        ImageFormat((3, 8, 8), (1.0, 0.0))
    with pytest.raises(ValueError, match=r"mean=\[0.5, 0.5\] must be one finite number, or one for each of 3 channels"):
        ImageFormat((3, 8, 8), mean=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"std=0\.0 must be above 0"):
        ImageFormat((3, 8, 8), std=0.0)
    with pytest.raises(ValueError, match=r"standardise: mean=\[1.0, 2.0\] must be one finite number, or one for each"):
        Generator((3, 8, 8), standardise=([1.0, 2.0], [1.0]))
