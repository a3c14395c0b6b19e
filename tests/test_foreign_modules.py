"""Modules, networks and data that others wrote: torchgeo's, timm's, transformers' and Lightning's own demos."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term, load_student, load_teacher
from kd_lightning.callbacks import Distillation, TeacherFreezing
from kd_lightning.core.hashing import weights_hash
from kd_lightning.losses import KDLoss, LogitMSELoss, TaskLoss
from tests import toys

pytestmark = [
    pytest.mark.slow,
    # what others deprecate in each other is theirs to mend
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

MISSING = "needs other people's libraries, the extra `foreign`, which `make test-all` installs"
CLASSES = 4
LENGTH = 6


def timm_network(name: str = "test_resnet", seed: int = 0) -> nn.Module:
    timm = pytest.importorskip("timm", reason=MISSING)
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=CLASSES)


def text_network(width: int = 32, seed: int = 0) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=MISSING)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
    )
    return transformers.BertForSequenceClassification(config)


def images(count: int = 3, rows: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": 255 * torch.rand(rows, 3, 32, 32, generator=generator),
            "label": torch.randint(CLASSES, (rows,), generator=generator),
        }
        for _ in range(count)
    ]


def texts(count: int = 3, rows: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(50, (rows, LENGTH), generator=generator),
            "attention_mask": torch.ones(rows, LENGTH, dtype=torch.long).tril(3),
            "labels": torch.randint(CLASSES, (rows,), generator=generator),
        }
        for _ in range(count)
    ]


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation, written out."""
    log_p, q = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * (q * (q.log() - log_p)).sum() / len(student)


def terms(**more: Term) -> dict[str, Term]:
    return {"kd": Term(KDLoss(3.0), weight=0.9), **more}


class Seen(Callback):
    """The first step: its batch, its loss, and what a network was called with and gave."""

    def __init__(self, network: str) -> None:
        self.network = network

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.batch = batch
            self.handle = pl_module.get_submodule(self.network).register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, network, args, kwargs, output):
        self.args, self.kwargs, self.output = args, kwargs, output
        self.handle.remove()

    def on_before_backward(self, trainer, pl_module, loss):
        self.loss = vars(self).get("loss", loss.detach())


def fit(module: LightningModule, drop_in: Distillation, folder: Path, data: Any, **changes: Any) -> tuple[Seen, Any]:
    """Trains, and checks what must hold of every drop-in."""
    seen, checkpoint = Seen(drop_in.student), ModelCheckpoint(folder)
    before, parts = weights_hash(drop_in.teacher), [name for name, _ in module.named_modules()]
    learned = toys.weights(module)
    trainer = toys.trainer(folder, drop_in, TeacherFreezing(), seen, checkpoint, **{"max_epochs": 2} | changes)
    trainer.fit(module, data)
    assert weights_hash(drop_in.teacher) == before
    assert [name for name, _ in module.named_modules()] == parts
    assert not toys.same(toys.weights(module), learned)
    assert {"train/kd", "temperature/kd"} <= set(trainer.callback_metrics)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["state_dict"].keys() == module.state_dict().keys()
    return seen, checkpoint.best_model_path


# ---- Distillation in a module of theirs


def task() -> LightningModule:
    pytest.importorskip("torchgeo", reason=MISSING)
    from torchgeo.trainers import ClassificationTask  # a torchgeo that is there and cannot be imported is no reason

    torch.manual_seed(1)
    return ClassificationTask(model="test_resnet", num_classes=CLASSES)


def scenes() -> Any:
    """torchgeo's own data module: it augments and normalises in on_after_batch_transfer."""
    pytest.importorskip("torchgeo", reason=MISSING)
    from kornia import augmentation
    from torchgeo.datamodules import NonGeoDataModule
    from torchgeo.datasets import NonGeoDataset

    class Scenes(NonGeoDataset):
        def __init__(self, split: str) -> None:
            self.rows = [
                dict(zip(batch, row, strict=True)) for batch in images() for row in zip(*batch.values(), strict=True)
            ]

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return self.rows[index]

        def __len__(self) -> int:
            return len(self.rows)

    data = NonGeoDataModule(Scenes, batch_size=8, num_workers=0)
    data.train_aug = augmentation.AugmentationSequential(
        augmentation.Normalize(mean=0.0, std=255.0),
        augmentation.RandomErasing(p=0.5),
        data_keys=None,
        keepdim=True,
    )
    return data


def test_a_torchgeo_task_learns_from_a_timm_teacher_as_written_out(tmp_path):
    module, shown = task(), timm_network("test_convnext", seed=2)
    student = copy.deepcopy(module.model)
    drop_in = Distillation("model", shown, terms(task=Term(TaskLoss(), weight=0.1, teacher=None, target="label")))
    seen, saved = fit(module, drop_in, tmp_path, scenes())
    (x,) = seen.args
    assert x.max() <= 1  # their transforms have been at it
    assert (x == 0).sum() > 100
    logits = student(x)
    expected = 1.1 * functional.cross_entropy(logits, seen.batch["label"]) + 0.9 * soft_loss(logits, shown(x), 3.0)
    torch.testing.assert_close(seen.loss, expected)
    again = type(module).load_from_checkpoint(saved, weights_only=True)
    assert toys.same(toys.weights(again), toys.weights(module))


class Boring(BoringModel):
    """With images to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = timm_network()

    def train_dataloader(self):
        return toys.Loader([batch["image"] / 255 for batch in images()])


class LanguageModel(LightningTransformer):
    """Small, without dropout, and on tokens that need no download."""

    def __init__(self) -> None:
        super().__init__(vocab_size=20)
        self.model = Transformer(20, ninp=16, nhid=16, nlayers=1, dropout=0.0)

    def prepare_data(self) -> None:
        pass


class Sentiment(LightningModule):
    """As people write them: the network computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = text_network()

    def training_step(self, batch, batch_idx):
        return {"loss": self.model(**batch).loss}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_a_transformers_module_that_lets_the_network_compute_its_loss_is_distilled(tmp_path):
    module, shown = Sentiment(), text_network(64, seed=2).eval()
    for layer in module.model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the first step can be written out
    student = copy.deepcopy(module.model)
    seen, _ = fit(module, Distillation("model", shown, terms()), tmp_path, toys.Loader(texts()))
    assert set(seen.kwargs) == {"input_ids", "attention_mask", "labels"}
    output = student(**texts()[0])
    expected = output.loss + 0.9 * soft_loss(output.logits, shown(**texts()[0]).logits, 3.0)
    torch.testing.assert_close(seen.loss, expected)


def test_lightnings_boring_model_with_a_timm_network_is_distilled_without_labels(tmp_path):
    module, shown = Boring(), timm_network("test_convnext", seed=2)
    student = copy.deepcopy(module.layer)
    seen, _ = fit(module, Distillation("layer", shown, terms()), tmp_path, None, limit_val_batches=0)
    x = images()[0]["image"] / 255
    logits = student(x)
    expected = functional.mse_loss(logits, torch.ones_like(logits)) + 0.9 * soft_loss(logits, shown(x), 3.0)
    torch.testing.assert_close(seen.loss, expected)


def test_lightnings_boring_model_learns_from_its_own_data(tmp_path):
    module, shown = BoringModel(), nn.Linear(32, 2)
    student = copy.deepcopy(module.layer)
    seen, _ = fit(module, Distillation("layer", shown, terms()), tmp_path, BoringDataModule())
    logits = student(seen.batch)
    expected = functional.mse_loss(logits, torch.ones_like(logits)) + 0.9 * soft_loss(logits, shown(seen.batch), 3.0)
    torch.testing.assert_close(seen.loss, expected)


def test_lightnings_language_model_is_distilled(tmp_path):
    torch.manual_seed(0)
    module, shown = LanguageModel(), Transformer(20, ninp=32, nhid=32, nlayers=1)
    student = copy.deepcopy(module.model)
    tokens = torch.randint(20, (2, LENGTH + 1))
    batch = (tokens[:, :-1], tokens[:, 1:].contiguous())
    seen, _ = fit(module, Distillation("model", shown, terms()), tmp_path, toys.Loader([batch, batch]))
    logits = student(*batch)
    expected = functional.nll_loss(logits, batch[1].flatten()) + 0.9 * soft_loss(logits, shown.eval()(*batch), 3.0)
    torch.testing.assert_close(seen.loss, expected)


PAGE = (Path(__file__).parents[1] / "docs/drop-in.md").read_text(encoding="utf-8")
PROGRAMS = [program for program in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "import timm" in program]


class Images(LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.backbone(batch["image"]), batch["label"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("number", range(2))
def test_the_programs_on_the_drop_ins_page_run(number, tmp_path, monkeypatch):
    build = pytest.importorskip("timm", reason=MISSING).create_model
    monkeypatch.setattr("timm.create_model", lambda name, **_: build("test_resnet", num_classes=10))
    names: dict[str, Any] = {
        "Trainer": lambda callbacks: toys.trainer(tmp_path, *callbacks, max_epochs=1),
        "YourModule": Images,
        "YourDataModule": lambda: toys.Loader(images()),
        "YourGeoDataModule": scenes,
    }
    if "torchgeo" in PROGRAMS[number]:
        pytest.importorskip("torchgeo", reason=MISSING)
    exec(PROGRAMS[number], names)
    assert names["trainer"].global_step == 3
    assert "train/kd" in names["trainer"].callback_metrics


# ---- OfflineDistiller, with networks and data of theirs


def distil(learner: OfflineDistiller, folder: Path, data: Any) -> dict[str, float]:
    """Trains, evaluates, and checks what must hold of every distiller; gives the metrics."""
    before, checkpoint = weights_hash(learner.teacher), ModelCheckpoint(folder)
    trainer = toys.trainer(folder, TeacherFreezing(), checkpoint, max_epochs=2)
    trainer.fit(learner, data, data)
    assert weights_hash(learner.teacher) == before
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert not [name for name in saved["state_dict"] if name.startswith("teacher")]
    student = load_student(checkpoint.best_model_path, network=copy.deepcopy(learner.student))
    assert toys.same(toys.weights(student), toys.weights(learner.student))
    (metrics,) = trainer.test(learner, data, verbose=False)
    return metrics


def test_timm_networks_are_distilled_from_mappings_and_from_tuples(tmp_path):
    for name, data in (("mappings", images()), ("tuples", [tuple(batch.values()) for batch in images()])):
        task = Term(TaskLoss(), 0.1, teacher=None, target="label" if name == "mappings" else "target")
        learner = OfflineDistiller(timm_network(), timm_network("test_convnext", seed=2), terms(task=task))
        metrics = distil(learner, tmp_path / name, toys.Loader(data))
        logits = torch.cat([learner.student.eval()(batch["image"]) for batch in images()])
        labels = torch.cat([batch["label"] for batch in images()])
        assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert metrics["test/nll"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_transformers_networks_are_distilled_from_mappings(tmp_path):
    more = {
        "task": Term(TaskLoss(), 0.1, teacher=None, target="labels"),
        "pooled": Term(LogitMSELoss(), 1.0, student="bert.pooler", teacher="bert.pooler"),
    }
    learner = OfflineDistiller(text_network(), text_network(seed=2), terms(**more))
    metrics = distil(learner, tmp_path, toys.Loader(texts()))
    student = learner.student.eval()
    logits = torch.cat([student(batch["input_ids"], batch["attention_mask"]).logits for batch in texts()])
    labels = torch.cat([batch["labels"] for batch in texts()])
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["test/nll"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_data_module_without_labels_will_do_for_soft_targets(tmp_path):
    learner = OfflineDistiller(nn.Linear(32, 2), nn.Linear(32, 2), terms())
    before = toys.weights(learner.student)
    # it has validation data, and no labels to validate with
    toys.trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(learner, BoringDataModule())
    assert not toys.same(toys.weights(learner.student), before)


def test_a_teacher_is_loaded_from_the_checkpoint_of_a_task_of_theirs(tmp_path):
    module, checkpoint = task(), ModelCheckpoint(tmp_path / "task")
    toys.trainer(tmp_path, checkpoint, max_epochs=1).fit(module, scenes())
    teacher = load_teacher(timm_network(), checkpoint.best_model_path)
    assert toys.same(toys.weights(teacher), toys.weights(module.model))
    more = {"task": Term(TaskLoss(), 0.1, teacher=None, target="label")}
    distil(
        OfflineDistiller(timm_network("test_convnext"), teacher, terms(**more)),
        tmp_path / "distilled",
        toys.Loader(images()),
    )
