"""GeneratorInversion: a fresh generator in each round, whose images must differ from all earlier ones."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError
from kd_lightning.core.term import Term
from kd_lightning.networks import Generator
from kd_lightning.networks.generators import check_generator
from kd_lightning.schemes.data_free.image_losses import evaluate_terms
from kd_lightning.schemes.data_free.inversion_targets import RandomClasses, Targets
from kd_lightning.schemes.data_free.synthesizer import SynthesisRound, Synthesizer
from kd_lightning.schemes.data_free.windows import random_crops, random_shifts


class GeneratorInversion(Synthesizer):
    """Train a new generator in each round, on the image terms and on a contrastive loss against earlier images.

    The generator and its noise minimise the image terms and, weighted by `contrast`,

    L = mean_n -log exp(sim(l_n, g_n) / t) / sum_m exp(sim(l_n, g_m) / t) over the round's images, plus the same over
    stored ones,

    where l_n and g_n are a head's outputs for the teacher's features of a crop of image n and of the whole image, sim
    is the cosine, and m runs over the round's images and the stored ones: similar images cost. Gradients flow through
    l alone. The images of a round are those of the step with the least loss; the bank stores them with their features.

    Gongfan Fang, Jie Song, Xinchao Wang, Chengchao Shen, Xingen Wang, Mingli Song: Contrastive Model Inversion for
    Data-Free Knowledge Distillation. IJCAI 2021 (arXiv:2105.08584). Crops are squares of a quarter of the image's area
    up to all of it. Images are not mirrored, because a mirrored digit is no digit. The head's optimizer is built again
    in each round, as the generator's is, so that a checkpoint between rounds is complete.

    Args:
        image_terms: The losses that an image minimises; a term of the teacher alone has ``student=None``.
        generator: Maps noise to images, without classes; in each round its weights are drawn from a normal distribution
            with a deviation of .02. Its images have the range and the normalization of its arguments.
        features: The teacher's layers whose features, averaged over positions, represent an image.
        contrast: The weight of L.
        temperature: t.
        negatives: The greatest number of stored images in a step's L.
        width: Number of outputs of the head.
        lr: Learning rate of generator, noise and head.
        targets: Draws the label ``target`` of each image; ten classes if not given.
        synthesis_steps: Steps of the generator in a round.

    Raises:
        UsageError: As `Synthesizer`; there are no features, a number is out of its range, or the generator has classes.

    Example:
        >>> from kd_lightning.losses import TaskLoss
        >>> from kd_lightning.networks import TeacherConvNet
        >>> terms = {"class": Term(TaskLoss(), student=None)}
        >>> synthesizer = GeneratorInversion(terms, Generator((3, 32, 32)), features=["conv.5"])
        >>> {name: tuple(row.shape) for name, row in synthesizer.build(TeacherConvNet()).items()}
        {'images': (1, 3, 32, 32), 'targets': (1,), 'features': (1, 2, 128)}
    """

    head: nn.Sequential

    def __init__(
        self,
        image_terms: dict[str, Term],
        generator: Generator,
        features: list[str],
        contrast: float = 0.8,
        temperature: float = 0.1,
        negatives: int = 1024,
        width: int = 128,
        lr: float = 0.001,
        targets: Targets | None = None,
        synthesis_steps: int = 200,
    ) -> None:
        check_generator(generator)
        super().__init__(image_terms, generator.format, synthesis_steps)
        if not features:
            raise UsageError("features is empty: name layers of the teacher, e.g. ['conv.5']")
        if generator.classes:
            raise UsageError(f"the generator has {generator.classes} classes, but targets choose the class: set 0")
        if negatives < 0 or width < 1 or not all(v > 0 and math.isfinite(v) for v in (temperature, lr)):
            raise UsageError(
                f"negatives={negatives} must be at least 0, width={width} at least 1, and temperature={temperature} "
                f"and lr={lr} finite numbers above 0"
            )
        self.generator = generator.requires_grad_(False)  # each round trains a copy
        self.features = features
        self.contrast = contrast
        self.temperature = temperature
        self.negatives = negatives
        self.width = width
        self.lr = lr
        self.targets = RandomClasses() if targets is None else targets

    def build(self, teacher: nn.Module) -> dict[str, Tensor]:
        """Build the head, and return one row of zeros of the columns ``images``, ``targets`` and ``features``."""
        with torch.random.fork_rng(devices=[]):
            target = self.targets.student_targets(self.targets(1, teacher))
        images = torch.zeros(1, *self.format.image_shape)
        with torch.no_grad():
            depth = self._pooled(tap(teacher, images, self.features)).shape[1]
        layers = nn.Linear(depth, depth), nn.ReLU(), nn.Linear(depth, self.width)
        self.head = nn.Sequential(*layers).requires_grad_(False)
        return {"images": images, "targets": torch.zeros_like(target), "features": torch.zeros(1, 2, depth)}

    def synthesize(self, given: SynthesisRound) -> dict[str, Tensor]:
        """Train a new generator, and return its images (N, C, H, W), their targets and their features (N, 2, D)."""
        targets = self.targets(given.num_images, given.teacher)
        generator, head = copy.deepcopy(self.generator).train(), copy.deepcopy(self.head)
        for network in (generator, head):
            network.requires_grad_(True)
        init_generator(generator)
        (noise,) = generator.draw(given.num_images, next(head.parameters()).device)
        noise.requires_grad_()
        trained = [noise, *generator.parameters(), *head.parameters()]
        optimizers = [
            torch.optim.Adam([noise, *generator.parameters()], lr=self.lr, betas=(0.5, 0.999)),
            torch.optim.Adam(head.parameters(), lr=self.lr),
        ]
        stored = given.bank.column("features", given.bank.size_after(given.number))
        networks, labels = (given.student, given.teacher), {"target": targets}
        least, rows = math.inf, {}
        for _ in range(self.synthesis_steps):
            images = generator(noise)
            losses, seen = evaluate_terms(self.image_terms, *networks, random_shifts(images, 4), labels, self.features)
            whole = self._pooled(seen)
            crop = self._pooled(tap(given.teacher, random_crops(images), self.features))
            total = self.image_terms.weighted_sum(losses) + self.contrast * self._contrastive(head, crop, whole, stored)
            if total.item() < least:
                least = total.item()
                rows = {"images": images.detach(), "features": torch.stack((crop, whole), dim=1).detach()}
            for parameter, gradient in zip(trained, torch.autograd.grad(total, trained), strict=True):
                parameter.grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        with torch.no_grad():  # the same on every process
            for stored_value, value in zip(self.head.parameters(), head.parameters(), strict=True):
                stored_value.copy_(all_gather_with_grad(value.detach().unsqueeze(0)).mean(dim=0))
        return rows | {"targets": self.targets.student_targets(targets)}

    def _contrastive(self, head: nn.Module, crop: Tensor, whole: Tensor, stored: Tensor) -> Tensor:
        """L, of features (N, D) of the round's images and stored ones (M, 2, D)."""
        count = len(crop)
        if len(stored) and self.negatives:
            chosen = stored[torch.randperm(len(stored), device=stored.device)[: self.negatives]]
            crop, whole = torch.cat((crop, chosen[:, 0])), torch.cat((whole, chosen[:, 1]))
        local, of_whole = (functional.normalize(head(side), dim=1) for side in (crop, whole))
        logits = local @ of_whole.detach().mT / self.temperature
        rows = functional.cross_entropy(
            logits.float(), torch.arange(len(logits), device=logits.device), reduction="none"
        )
        return rows[:count].mean() + (rows[count:].mean() if len(rows) > count else 0)

    def _pooled(self, seen: Activations) -> Tensor:
        """Features averaged over their positions, of all layers, (N, D)."""
        found = [seen[layer] for layer in self.features]
        return torch.cat([value.flatten(2).mean(dim=2) if value.dim() > 2 else value for value in found], 1)


def init_generator(generator: nn.Module) -> None:
    """Draw the weights of a generator from a normal distribution with a deviation of .02, around 1 for BatchNorm."""
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
