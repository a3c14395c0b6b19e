"""Generators: networks that map noise, and a class where there are classes, to an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.arguments import check_is_network
from kd_lightning.core.errors import UsageError
from kd_lightning.networks.image_format import ImageFormat, ImageShape, PerChannel, per_channel


class Generator(nn.Module):
    """A linear layer and three convolutions from noise to images; the first two convolutions double the size.

    BatchNorm follows each layer but the last, as in DCGAN (Radford, Metz, Chintala 2016, arXiv:1511.06434). The maps
    are enlarged by repetition before each convolution, which avoids checkerboard artefacts.

    Args:
        image_shape: (C, H, W) of the images; H and W are multiples of 4.
        latent: Length of the noise.
        width: Channels of the smallest map; the largest ones have half as many.
        classes: Number of classes, which are given to the network beside the noise; 0 for none.
        value_range: The least and the greatest value of a pixel before normalization.
        mean: Mean of the normalization: one number, or one for each channel.
        std: Standard deviation of the normalization: one number, or one for each channel.
        standardise: A mean and a deviation, each one number or one for each channel, that every batch of images is
            brought to (Chen et al.: Data-Free Learning of Student Networks. ICCV 2019); it takes the place of range and
            normalization. Without it each pixel goes through a sigmoid.

    Shapes:
        Input: noise (N, latent) and, with classes, class indices (N,); output: (N, C, H, W), in the range of normalized
        pixels unless `standardise` is given.

    Raises:
        UsageError: H or W is no multiple of 4, or a number is out of its range; at a call: classes are missing.

    Example:
        >>> generator = Generator((3, 32, 32), latent=16, width=8, classes=10)
        >>> generator(*generator.draw(4, torch.device("cpu"))).shape
        torch.Size([4, 3, 32, 32])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        image_shape: ImageShape,
        latent: int = 100,
        width: int = 32,
        classes: int = 0,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: PerChannel = 0.0,
        std: PerChannel = 1.0,
        standardise: tuple[PerChannel, PerChannel] | None = None,
    ) -> None:
        super().__init__()
        self.format = ImageFormat(image_shape, value_range, mean, std)
        channels, *size = self.format.image_shape
        if any(side % 4 for side in size):
            raise UsageError(
                f"image_shape={[*image_shape]} needs a height and a width that are multiples of 4, for the image is "
                "enlarged twice"
            )
        for name, value, least in (("latent", latent, 1), ("width", width, 2), ("classes", classes, 0)):
            if value < least:
                raise UsageError(f"{name}={value} must be at least {least}")
        self.latent = latent
        self.classes = classes
        self.standardises = standardise is not None
        for name, value in zip(("mean", "deviation"), standardise or (0.0, 1.0), strict=True):
            self.register_buffer(name, per_channel(f"standardise: {name}", value, channels), persistent=False)
        last = [nn.Tanh(), nn.BatchNorm2d(channels, affine=False)] if self.standardises else [nn.Sigmoid()]
        smallest = [side // 4 for side in size]
        self.project = nn.Linear(latent + classes, width * smallest[0] * smallest[1])
        self.layers = nn.Sequential(
            nn.Unflatten(1, (width, *smallest)),
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, kernel_size=3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, kernel_size=3, padding=1),
            *last,
        )

    def draw(self, n: int, device: torch.device) -> tuple[Tensor, ...]:
        """Draw noise for n images, and, with classes, as many classes, from torch's default generator."""
        noise = torch.randn(n, self.latent, device=device)
        return (noise, torch.randint(self.classes, (n,), device=device)) if self.classes else (noise,)

    def forward(self, noise: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the images (N, C, H, W) of noise (N, latent)."""
        if self.classes:
            if target is None:
                raise UsageError(f"this generator draws one of {self.classes} classes: give class indices (N,)")
            noise = torch.cat((noise, functional.one_hot(target, self.classes).to(noise.dtype)), dim=1)
        images = self.layers(self.project(noise))
        return images * self.deviation + self.mean if self.standardises else self.format.from_unit(images)


def check_generator(generator: nn.Module) -> None:
    """Check that a network makes inputs as `Generator` does, with a method ``draw`` for its noise.

    Raises:
        UsageError: It is no network, or has no such method.
    """
    check_is_network(generator, "generator")
    if not callable(getattr(generator, "draw", None)):
        raise UsageError(
            f"generator: {type(generator).__name__} has no method draw(n, device) that returns the arguments of its "
            "forward for n images: add one, e.g. return (torch.randn(n, 100, device=device),)"
        )
