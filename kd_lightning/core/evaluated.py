"""EvaluatedModule: a LightningModule whose inference network is evaluated, exported and used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd_lightning.core.activations import logits, logits_of
from kd_lightning.core.batch import Batch
from kd_lightning.core.evaluation import Evaluation, Stage
from kd_lightning.core.network_call import run


class EvaluatedModule(LightningModule, ABC):
    """The hooks of validation, test and prediction, which are the same in every scheme.

    A subclass assigns `evaluation` and `evaluated_networks`.
    """

    evaluation: Evaluation
    """Metrics of each stage, network and loader."""
    evaluated_networks: Sequence[str]
    """Names of the networks whose logits `evaluated_logits` gives."""

    # ---- to override

    @abstractmethod
    def split_batch(self, batch: Any) -> Batch:
        """Split a batch into inputs and labels."""

    @property
    def inference_network_name(self) -> str:
        """Dotted name of the network that is evaluated, exported and used: the student, in most schemes."""
        return "student"

    def inference_network(self) -> nn.Module:
        """Return the network that is evaluated, exported and used."""
        return self.get_submodule(self.inference_network_name)

    def evaluated_logits(self, inputs: Any) -> dict[str, Tensor]:
        """Compute the logits of each of the `evaluated_networks`."""
        return {self.inference_network_name: logits(self.inference_network(), inputs)}

    def configure_metrics(self) -> MetricCollection | None:
        """Return the scheme's own metrics; None for the default ones of the kind of label."""
        return None

    @property
    def monitor(self) -> str:
        """The logged value that chooses the best checkpoint."""
        return f"val/{self.evaluation.monitor}"

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction of `monitor` that is better."""
        return self.evaluation.mode

    # ---- hooks of Lightning

    def forward(self, inputs: Any) -> Any:
        """Return the output of the inference network."""
        return run(self.inference_network(), inputs)

    def on_validation_start(self) -> None:
        """Reset the validation metrics."""
        self.evaluation.start("val", self.evaluated_networks, self.trainer.val_dataloaders, self.device)

    def on_test_start(self) -> None:
        """Reset the test metrics."""
        self.evaluation.start("test", self.evaluated_networks, self.trainer.test_dataloaders, self.device)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the test metrics."""
        self._evaluate(batch, "test", dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the name of the inference network."""
        checkpoint["inference_network"] = self.inference_network_name

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the logits of the inference network."""
        return logits_of(self(self.split_batch(batch).student))

    # ---- private

    def _evaluate(self, batch: Any, stage: Stage, loader: int) -> None:
        inputs, _, labels = self.split_batch(batch)
        for name, outputs in self.evaluated_logits(inputs).items():
            self.evaluation.update(stage, name, outputs, labels, loader)

    def _log_evaluation(self, stage: Stage) -> None:
        for name, value in self.evaluation.compute(stage, self.inference_network_name).items():
            self.log(name, value, prog_bar=name.count("/") == 1, sync_dist=True)
