"""Configurations that several tests of the command line use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import CONFIG

MODULE = """\
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Series(LightningDataModule):
    def __init__(self, width: int = 6):
        super().__init__()
        self.rows = TensorDataset(torch.randn(40, width), torch.randn(40, 1))

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)


class Regression(LightningModule):
    def __init__(self, fault: str = ""):
        super().__init__()
        self.net, self.fault = torch.nn.Linear(6, 1), fault

    def training_step(self, batch, batch_idx):
        if self.fault:
            raise KeyError(self.fault)
        self.log("loss", loss := (self.net(batch[0]) - batch[1]).square().mean())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(CONFIG.replace("runs/mnist/teacher/last.ckpt", "packaged:mnist/teacher-0"))
    return "--config=mine.yaml"


@pytest.fixture
def series(tmp_path, monkeypatch):
    """A module and data of a user, of real values and without validation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("user_series.py").write_text(MODULE)
    Path("series.yaml").write_text(
        "model: user_series.Regression\ndata: user_series.Series\ntrainer: {accelerator: cpu}\n"
    )
    return "--config=series.yaml"
