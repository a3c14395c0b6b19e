"""What the tests of `ResidentDataModule` share."""

from lightning.pytorch import Trainer


def indices(loader) -> list[list[int]]:
    return [index.tolist() for _, _, index in loader]


def trainer(**arguments) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 2, "num_sanity_val_steps": 0, "enable_checkpointing": False, **quiet, **arguments})
