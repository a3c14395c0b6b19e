"""A user's LightningModule and data, as a module of their own that the compare file names."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score


class Points(LightningDataModule):  # without a seed
    def __init__(self, size: int = 90) -> None:
        super().__init__()
        self.size = size

    def loader(self, seed: int) -> DataLoader:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(self.size, 2, 3, generator=draw)
        return DataLoader(TensorDataset(x, x[:, 0].argmax(1)), batch_size=30)

    def train_dataloader(self) -> DataLoader:
        return self.loader(0)

    def val_dataloader(self) -> DataLoader:
        return self.loader(1)

    def test_dataloader(self) -> DataLoader:
        return self.loader(2)


class Theirs(LightningModule):
    def __init__(self, width: int = 8, lr: float = 0.02) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
        self.f1 = MulticlassF1Score(3)
        self.lr = lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_f1", self.f1(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_f1", self.f1(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)
