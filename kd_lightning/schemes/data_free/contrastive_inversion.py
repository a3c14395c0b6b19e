"""Inversion by a generator that is to draw what it has not drawn before."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from kd_lightning.core.activations import Activations, tap
from kd_lightning.core.distributed import all_gather_with_grad
from kd_lightning.core.errors import UsageError
from kd_lightning.core.learner import LRSchedulerCallable, OptimizerCallable
from kd_lightning.core.terms import Term
from kd_lightning.networks import Generator
from kd_lightning.schemes.data_free.drawn import evaluate_terms
from kd_lightning.schemes.data_free.inversion import InversionDistiller
from kd_lightning.schemes.data_free.inversion_targets import Targets


class ContrastiveInversionDistiller(InversionDistiller):
    """Rounds of images by a generator that starts anew in each, told from all earlier ones by contrast.

    In a round a fresh generator and its noise learn to draw images that minimise the image terms and, by `contrast`,

    L = mean_n -log exp(sim(l_n, g_n) / t) / sum_m exp(sim(l_n, g_m) / t) over the round's images, and the same over
    remembered ones,

    where l_n and g_n are what a head makes of the teacher's features of a crop of image n and of the whole, sim is the
    cosine, and m goes over the round's images and the remembered ones: images that are like each other cost. Gradients
    go through l alone. Of each round the step with the least loss is kept, with its features.

    Gongfan Fang, Jie Song, Xinchao Wang, Chengchao Shen, Xingen Wang, Mingli Song: Contrastive Model Inversion for
    Data-Free Knowledge Distillation. IJCAI 2021 (arXiv:2105.08584). Crops are squares of a quarter of the image's area
    to all of it; there are no mirror images, for those of digits are none. The head's optimizer starts anew with the
    generator's, so that a checkpoint between rounds is complete.

    The other arguments are those of `InversionDistiller`.

    Args:
        generator: Draws the images, of one class or of none; its weights are drawn anew, with a deviation of .02.
        features: The teacher's layers whose features, averaged over positions, tell images apart.
        contrast: The weight of L.
        temperature: t.
        negatives: How many remembered images are looked at in a step, at most.
        width: Of what the head gives.
        rate: Learning rate of generator, noise and head.

    Raises:
        UsageError: As `InversionDistiller`; there are no features, a number is out of its range, or the generator has
            classes.

    Example:
        >>> from kd_lightning.losses import KDLoss, TaskLoss
        >>> from kd_lightning.networks import StudentConvNet, TeacherConvNet
        >>> terms, image_terms = {"kd": Term(KDLoss())}, {"class": Term(TaskLoss(), student=None)}
        >>> players = StudentConvNet(), TeacherConvNet(), terms, image_terms, Generator()
        >>> small = {"bank_size": 8, "round_size": 8, "image_steps": 2}
        >>> learner = ContrastiveInversionDistiller(*players, features=["conv.5"], **small)
        >>> sorted(learner.compute_losses({"index": torch.arange(4)}))
        ['kd']
    """

    memory: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: dict[str, Term],
        image_terms: dict[str, Term],
        generator: Generator,
        features: list[str],
        contrast: float = 0.8,
        temperature: float = 0.1,
        negatives: int = 1024,
        width: int = 128,
        rate: float = 0.001,
        targets: Targets | None = None,
        bank_size: int = 2560,
        round_size: int = 256,
        every: int = 1,
        image_steps: int = 200,
        size: int = 28,
        channels: int = 3,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        metrics: MetricCollection | None = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            terms,
            image_terms,
            targets,
            bank_size,
            round_size,
            every,
            image_steps,
            jitter=0,
            size=size,
            channels=channels,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            metrics=metrics,
        )
        if not features:
            raise UsageError("features is empty: name layers of the teacher, e.g. ['conv.5']")
        if generator.classes:
            raise UsageError(
                f"the generator has {generator.classes} classes, and targets say what images are of: set 0"
            )
        if negatives < 0 or width < 1 or not all(v > 0 and math.isfinite(v) for v in (temperature, rate)):
            raise UsageError(
                f"negatives={negatives} must be at least 0, width={width} at least 1, and temperature={temperature} "
                f"and rate={rate} finite numbers above 0"
            )
        self.features = features
        self.contrast = contrast
        self.temperature = temperature
        self.negatives = negatives
        self.rate = rate
        self.generator = generator.requires_grad_(False)  # what each round's is a copy of
        with torch.no_grad():
            depth = self._features(torch.zeros(1, channels, size, size)).shape[1]
        self.head = nn.Sequential(nn.Linear(depth, depth), nn.ReLU(), nn.Linear(depth, width)).requires_grad_(False)
        self.register_buffer("memory", torch.zeros(bank_size, 2, depth))

    @torch.enable_grad()
    def synthesise(self, count: int) -> tuple[Tensor, Tensor]:
        """So many images (count, 1, H, W), and what they are of; their features are kept for `remember`."""
        targets = self.targets(count, self.teacher)
        generator, head = copy.deepcopy(self.generator).train(), copy.deepcopy(self.head)
        for network in (generator, head):
            network.requires_grad_(True)
        _draw_anew(generator)
        (noise,) = generator.draw(count, self.bank.device)
        noise.requires_grad_()
        learning = [noise, *generator.parameters(), *head.parameters()]
        optimizers = [
            torch.optim.Adam([noise, *generator.parameters()], lr=self.rate, betas=(0.5, 0.999)),
            torch.optim.Adam(head.parameters(), lr=self.rate),
        ]
        training = self.student.training
        self.student.eval()
        terms = self.image_terms
        least = math.inf
        images, features = noise, noise
        for _ in range(self.image_steps):
            drawn = generator(noise)
            moved = _moved(drawn, 4)
            losses, seen = evaluate_terms(terms, self.student, self.teacher, moved, {"target": targets}, self.features)
            whole, part = _pooled(seen, self.features), self._features(_cropped(drawn))
            apart = self.contrast * self._apart(head, part, whole)
            total = terms.weighted_sum(losses) + apart
            if total.item() < least:
                least, images = total.item(), drawn.detach()[:, :1]
                features = torch.stack((part, whole), dim=1).detach()
            for parameter, gradient in zip(learning, torch.autograd.grad(total, learning), strict=True):
                parameter.grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        self.student.train(training)
        with torch.no_grad():  # the same on every process
            for kept, value in zip(self.head.parameters(), head.parameters(), strict=True):
                kept.copy_(all_gather_with_grad(value.detach().unsqueeze(0)).mean(dim=0))
        self._new = features
        return images, self.targets.kept(targets)

    def _join(self, start: int, images: Tensor, targets: Tensor) -> None:
        super()._join(start, images, targets)
        features = all_gather_with_grad(self._new)
        end = min(start + len(features), len(self.memory))
        self.memory[start:end] = features[: end - start]

    def _apart(self, head: nn.Module, part: Tensor, whole: Tensor) -> Tensor:
        """L, of features (N, D) of the round's images."""
        count = len(part)
        known = self._filled()
        if known and self.negatives:
            old = self.memory[torch.randperm(known, device=self.memory.device)[: self.negatives]]
            part, whole = torch.cat((part, old[:, 0])), torch.cat((whole, old[:, 1]))
        local, of_whole = (functional.normalize(head(side), dim=1) for side in (part, whole))
        logits = local @ of_whole.detach().mT / self.temperature
        rows = functional.cross_entropy(
            logits.float(), torch.arange(len(logits), device=logits.device), reduction="none"
        )
        return rows[:count].mean() + (rows[count:].mean() if len(rows) > count else 0)

    def _features(self, images: Tensor) -> Tensor:
        return _pooled(tap(self.teacher, images, self.features), self.features)


def _pooled(seen: Activations, layers: list[str]) -> Tensor:
    """Features averaged over their positions, of all layers, (N, D)."""
    return torch.cat(
        [seen[layer].flatten(2).mean(dim=2) if seen[layer].dim() > 2 else seen[layer] for layer in layers], 1
    )


def _draw_anew(generator: nn.Module) -> None:
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def _moved(images: Tensor, pixels: int) -> Tensor:
    """Each image moved by whole pixels at random, with zeros from outside."""
    width = images.shape[3]
    offsets = torch.randint(-pixels, pixels + 1, (len(images), 2), device=images.device) * 2 / width
    return _seen_through(images, torch.ones(len(images), device=images.device), offsets)


def _cropped(images: Tensor, least: float = 0.25) -> Tensor:
    """A square of each image, of `least` of its area to all of it, enlarged to its size."""
    drawn = torch.rand(len(images), 3, device=images.device)
    side = (least + (1 - least) * drawn[:, 0]).sqrt()
    return _seen_through(images, side, (2 * drawn[:, 1:] - 1) * (1 - side).unsqueeze(1))


def _seen_through(images: Tensor, side: Tensor, middle: Tensor) -> Tensor:
    """Windows whose sides and middles are given in halves of an image."""
    scale = torch.diag_embed(side.unsqueeze(1).expand(-1, 2))
    grid = functional.affine_grid(torch.cat((scale, middle.unsqueeze(2)), dim=2), [*images.shape], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
