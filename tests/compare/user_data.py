"""A user's data and losses, as a module of their own that the compare file names."""

import torch
from lightning.pytorch import LightningDataModule
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.core.loss import DistillationLoss


class Measurements(LightningDataModule):
    """Six numbers a sample; the label is a real value, three labels that can hold together, or one of three classes."""

    def __init__(self, kind="values", named_loaders=False, seed=0):
        super().__init__()
        self.kind, self.named_loaders, self.seed = kind, named_loaders, seed

    def setup(self, stage):
        draw = torch.Generator().manual_seed(7)
        x = torch.randn(240, 6, generator=draw)
        y = x @ torch.randn(6, 3, generator=draw) + 0.1 * torch.randn(240, 3, generator=draw)
        labels = {"values": y[:, :1], "multilabel": (y > 0).float(), "classes": y.argmax(dim=1)}[self.kind]
        self.parts = [TensorDataset(x[rows], labels[rows]) for rows in torch.arange(240).split([120, 40, 40, 40])]

    def train_dataloader(self):
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.parts[0], batch_size=20, shuffle=True, generator=order)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=40)

    def test_dataloader(self):
        near, far = (DataLoader(part, batch_size=16) for part in self.parts[2:])
        return {"near": near, "far": far} if self.named_loaders else near


class ThreeLabels(Measurements):
    """Without a seed: its order is the same in each run."""

    def __init__(self):
        super().__init__("multilabel")


class SquaredError(DistillationLoss):
    needs_target = True
    label_kind = "values"

    def forward(self, student, teacher, target):
        return functional.mse_loss(student, target)


class SeveralLabels(DistillationLoss):
    needs_target = True
    label_kind = "multilabel"

    def forward(self, student, teacher, target):
        return functional.binary_cross_entropy_with_logits(student, target)


class SquaredDifference(DistillationLoss):
    def forward(self, student, teacher, target=None):
        return functional.mse_loss(student, teacher)
