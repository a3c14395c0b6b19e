"""PixelInversion: images whose pixels are optimised by themselves."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import OptimizerCallable
from kd_lightning.core.term import Term
from kd_lightning.networks.image_format import ImageFormat, ImageShape, PerChannel
from kd_lightning.schemes.data_free.image_losses import evaluate_terms
from kd_lightning.schemes.data_free.inversion_targets import RandomClasses, Targets
from kd_lightning.schemes.data_free.synthesizer import SynthesisRound, Synthesizer


class PixelInversion(Synthesizer):
    """Optimise the pixels of images, from Gaussian noise, until a frozen teacher answers them with their targets.

    Pixels stay in the range of `value_range`. The methods differ in terms and targets:

    - DeepInversion (Hongxu Yin et al.: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion. CVPR 2020,
      arXiv:1912.08795): smooth images of random classes that have the statistics which the teacher's BatchNorm layers
      hold; the adaptive form adds a term of negative weight between teacher and student, and makes images during all of
      the training.
    - ZSKD (Gaurav Kumar Nayak et al.: Zero-Shot Knowledge Distillation in Deep Networks. ICML 2019, arXiv:1905.08114):
      data impressions, images with the outputs that
      `kd_lightning.schemes.data_free.inversion_targets.DataImpressions` draws.
    - Metadata (Raphael Gontijo Lopes et al.: Data-Free Knowledge Distillation for Deep Neural Networks. 2017,
      arXiv:1710.07535): images with the activations that `RecordedActivations`, in the same module, draws.

    Args:
        image_terms: The losses that an image minimises; a term of the teacher alone has ``student=None``.
        image_shape: (C, H, W) of the images.
        targets: Draws the label ``target`` of each image; ten classes if not given.
        synthesis_steps: Steps of the optimizer of a round's images.
        image_optimizer: Builds the optimizer of a round's images; Adam with a learning rate of .1 if not given.
        jitter: The images are rolled by up to this number of pixels in each step, at random.
        value_range: The least and the greatest value of a pixel before normalization.
        mean: Mean of the normalization: one number, or one for each channel.
        std: Standard deviation of the normalization: one number, or one for each channel.

    Raises:
        UsageError: There are no terms, one has parameters, or a number is out of its range.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> synthesizer = PixelInversion({"class": Term(TaskLoss(), student=None)}, image_shape=(3, 32, 32))
        >>> {name: tuple(row.shape) for name, row in synthesizer.build(nn.Linear(1, 10)).items()}
        {'images': (1, 3, 32, 32), 'targets': (1,)}
    """

    def __init__(
        self,
        image_terms: dict[str, Term],
        image_shape: ImageShape,
        targets: Targets | None = None,
        synthesis_steps: int = 200,
        image_optimizer: OptimizerCallable | None = None,
        jitter: int = 2,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: PerChannel = 0.0,
        std: PerChannel = 1.0,
    ) -> None:
        super().__init__(image_terms, ImageFormat(image_shape, value_range, mean, std), synthesis_steps)
        if not 0 <= jitter < (side := min(image_shape[1:])):
            raise UsageError(f"jitter={jitter} must be at least 0 and less than the images' size of {side}")
        self.targets = RandomClasses() if targets is None else targets
        self.build_image_optimizer = image_optimizer
        self.jitter = jitter

    def build(self, teacher: nn.Module) -> dict[str, Tensor]:
        """Return one row of zeros of the columns ``images`` and ``targets``."""
        with torch.random.fork_rng(devices=[]):
            target = self.targets.student_targets(self.targets(1, teacher))
        return {"images": torch.zeros(1, *self.format.image_shape), "targets": torch.zeros_like(target)}

    def init_images(self, given: SynthesisRound) -> Tensor:
        """Draw the images (N, C, H, W) of a round before their first step."""
        return self.format.noise(given.num_images)

    def synthesize(self, given: SynthesisRound) -> dict[str, Tensor]:
        """Optimise the images (N, C, H, W) of a round, and return them with their targets."""
        targets = self.targets(given.num_images, given.teacher)
        images = self.init_images(given).requires_grad_()
        build = self.build_image_optimizer
        optimizer = torch.optim.Adam([images], lr=0.1) if build is None else build([cast("nn.Parameter", images)])
        for _ in range(self.synthesis_steps):
            shifted = images
            if self.jitter:
                offsets = torch.randint(-self.jitter, self.jitter + 1, (2,)).tolist()
                shifted = images.roll(offsets, dims=(2, 3))
            losses, _ = evaluate_terms(self.image_terms, given.student, given.teacher, shifted, {"target": targets})
            (images.grad,) = torch.autograd.grad(self.image_terms.weighted_sum(losses), [images])
            optimizer.step()
            with torch.no_grad():
                self.format.clamp_(images)
        return {"images": images.detach(), "targets": self.targets.student_targets(targets)}
