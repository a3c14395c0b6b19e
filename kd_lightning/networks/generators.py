"""Generators: noise, and a class where it is given, made an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.errors import UsageError


class Generator(nn.Module):
    """A linear layer and three convolutions, from noise to images of which the first two double the size.

    BatchNorm stands behind each layer but the last, as in DCGAN (Radford, Metz, Chintala 2016, arXiv:1511.06434);
    images are enlarged by repetition before each convolution, which leaves no checkerboard.

    Args:
        latent: Length of the noise.
        width: Channels of the smallest map; the larger ones have half as many.
        channels: How often the one channel of an image is shown.
        size: Height and width of the images, divisible by 4.
        classes: How many classes the noise is joined by; 0 for none.
        standardise: A mean and a deviation that every batch of images is brought to, as Chen et al. (Data-Free Learning
            of Student Networks. ICCV 2019) do; without them each pixel goes through a sigmoid.

    Shapes:
        Input: noise (N, latent) and, with classes, class indices (N,); output (N, channels, size, size) in [0, 1],
        unless `standardise` is given.

    Raises:
        UsageError: `size` is not divisible by 4, or a number is too small; at a call: classes are missing.

    Example:
        >>> generator = Generator(latent=16, width=8, classes=10)
        >>> generator(*generator.draw(4, torch.device("cpu"))).shape
        torch.Size([4, 3, 28, 28])
    """

    def __init__(
        self,
        latent: int = 100,
        width: int = 32,
        channels: int = 3,
        size: int = 28,
        classes: int = 0,
        standardise: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if size % 4 or size < 4:
            raise UsageError(f"size={size} must be a multiple of 4, for the image is enlarged twice")
        for name, value, least in (("latent", latent, 1), ("width", width, 2), ("channels", channels, 1)):
            if value < least:
                raise UsageError(f"{name}={value} must be at least {least}")
        self.latent = latent
        self.classes = classes
        self.channels = channels
        self.mean, self.deviation = standardise or (0.0, 1.0)
        last = [nn.Sigmoid()] if standardise is None else [nn.Tanh(), nn.BatchNorm2d(1, affine=False)]
        self.project = nn.Linear(latent + classes, width * (size // 4) ** 2)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (width, size // 4, size // 4)),
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, kernel_size=3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, 1, kernel_size=3, padding=1),
            *last,
        )

    def draw(self, n: int, device: torch.device) -> tuple[Tensor, ...]:
        """Noise for n images, and, with classes, as many classes, from torch's default generator."""
        noise = torch.randn(n, self.latent, device=device)
        return (noise, torch.randint(self.classes, (n,), device=device)) if self.classes else (noise,)

    def forward(self, noise: Tensor, target: Tensor | None = None) -> Tensor:
        """The images."""
        if self.classes:
            if target is None:
                raise UsageError(f"this generator draws one of {self.classes} classes: give class indices (N,)")
            noise = torch.cat((noise, functional.one_hot(target, self.classes).to(noise.dtype)), dim=1)
        images = self.layers(self.project(noise)) * self.deviation + self.mean
        return images.expand(-1, self.channels, -1, -1)
