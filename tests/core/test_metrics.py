"""Metrics are right for every kind of label that torch knows, on any number of loaders and processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MulticlassF1Score, MultilabelAveragePrecision

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError
from kd_lightning.core.label_kinds import infer_kind
from kd_lightning.core.metrics import (
    Accuracy,
    Metrics,
    classification_metrics,
    multilabel_metrics,
    regression_metrics,
)
from kd_lightning.losses import FeatureMSELoss, KDLoss, TaskLoss
from tests import toys

CLASSES, ROWS = 4, 22


class Scaled(nn.Module):
    """Logits are its inputs, scaled."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def batches(x: Tensor, y: Tensor, size: int) -> toys.Loader:
    return toys.Loader([*zip(x.split(size), y.split(size), strict=True)])


def indices(ignored: int | None = None, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (ROWS, *shape), generator=generator)
    if ignored is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = ignored
    return labels


def soft(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(2)).softmax(
        dim=1 if len(shape) > 2 else -1
    )


def one_hot(dtype: torch.dtype) -> Tensor:
    return functional.one_hot(indices(), CLASSES).to(dtype)


ROW, TOKENS, PIXELS = (CLASSES,), (5, CLASSES), (CLASSES, 3, 5)
LABELS = {  # the logits' shape, the labels, and the index that does not count
    "indices": (ROW, indices(), -100),
    "indices in a byte": (ROW, indices().to(torch.uint8), -100),
    "indices, some -100": (ROW, indices(-100), -100),
    "indices, some 255": (ROW, indices(255), 255),
    "indices, class 0 ignored": (ROW, indices(0), 0),
    "one-hot rows": (ROW, one_hot(torch.float32), -100),
    "one-hot rows of whole numbers": (ROW, one_hot(torch.int64), -100),
    "soft labels": (ROW, soft(CLASSES), -100),
    "tokens": (TOKENS, indices(None, 5), -100),
    "tokens, some -100": (TOKENS, indices(-100, 5), -100),
    "soft tokens": (TOKENS, soft(5, CLASSES), -100),
    "pixels": (PIXELS, indices(None, 3, 5), -100),
    "pixels, some 255": (PIXELS, indices(255, 3, 5), 255),
    "soft pixels": (PIXELS, soft(CLASSES, 3, 5), -100),
}


@pytest.mark.parametrize("size", [1, 3, CLASSES, 5, ROWS])
@pytest.mark.parametrize(("shape", "labels", "ignored"), LABELS.values(), ids=LABELS)
def test_metrics_of_classes_are_plain_torchs_over_all_rows(shape, labels, ignored, size, tmp_path):
    logits = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(0))
    terms = {"task": Term(TaskLoss(), teacher=None, ignore_index=ignored)}
    learner = Classifier(Scaled(2.0), terms)
    (found,) = toys.trainer(tmp_path).validate(learner, batches(logits, labels, size), verbose=False)

    z, y = 2.0 * logits, labels
    if y.dim() == z.dim() - 1:
        y = y.long()
        kept = y != ignored
        right = (z.argmax(dim=1 if z.dim() != 3 else -1) == y)[kept]
        if z.dim() == 3:
            z = z.movedim(-1, 1)  # cross_entropy has the classes second
        nll = functional.cross_entropy(z, y, ignore_index=ignored)
    else:
        dim = -1 if z.dim() == 3 else 1
        right = z.argmax(dim=dim) == y.argmax(dim=dim)
        z, y = (z.movedim(-1, 1), y.movedim(-1, 1)) if z.dim() == 3 else (z, y)
        nll = functional.cross_entropy(z, y.float())
    assert found["val/acc"] == pytest.approx(right.double().mean().item(), abs=1e-6)
    assert found["val/nll"] == pytest.approx(nll.item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, CLASSES, ROWS])
def test_metrics_of_several_labels_are_plain_torchs_although_rows_have_one_positive(size, tmp_path):
    logits = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
    labels = one_hot(torch.float32)
    learner = Classifier(Scaled(), metrics=multilabel_metrics())
    (found,) = toys.trainer(tmp_path).validate(learner, batches(logits, labels, size), verbose=False)
    nll, right = (
        functional.binary_cross_entropy_with_logits(logits, labels),
        ((logits > 0) == labels.bool()).float().mean(),
    )
    assert found == pytest.approx({"val/acc": right.item(), "val/nll": nll.item()}, rel=1e-5)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, 3)])
@pytest.mark.parametrize("size", [1, 3, ROWS])
def test_metrics_of_real_values_are_plain_torchs(size, shape, tmp_path):
    generator = torch.Generator().manual_seed(0)
    outputs, values = torch.randn(ROWS, 1 if len(shape) == 1 else shape[1], generator=generator), torch.randn(shape)
    learner = OfflineDistiller(Scaled(), Scaled(), {"kd": Term(FeatureMSELoss())}, metrics=regression_metrics())
    assert (learner.monitor, learner.mode) == ("val/mse", "min")
    (found,) = toys.trainer(tmp_path).validate(learner, batches(outputs, values, size), verbose=False)
    error = outputs.view(shape) - values
    assert found == pytest.approx(
        {"val/mse": error.square().mean().item(), "val/mae": error.abs().mean().item()}, rel=1e-5
    )


def test_a_network_of_one_output_has_a_regression_metric_by_default(tmp_path):
    learner = OfflineDistiller(Scaled(), Scaled(), {"kd": Term(FeatureMSELoss())})
    x, y = torch.randn(6, 1), torch.randn(6, 1)
    (found,) = toys.trainer(tmp_path).validate(learner, batches(x, y, 2), verbose=False)
    assert found["val/mse"] == pytest.approx((x - y).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(4, 3), torch.rand(4, 3)),
        (torch.zeros(4, 3), torch.ones(4, 3)),
        (torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.long)),
        (torch.zeros(4, 1), torch.ones(4, 1)),
        (torch.zeros(4, 3), torch.rand(4)),
    ],
)
def test_labels_that_nothing_declares_cost_one_line(logits, target, tmp_path):
    with pytest.raises(UsageError, match="nothing declares their kind: give the scheme metrics="):
        infer_kind(logits, target)
    learner = OfflineDistiller(Scaled(), Scaled(), {"kd": Term(KDLoss())})
    with pytest.raises(UsageError, match="nothing declares their kind") as refusal:
        toys.trainer(tmp_path).validate(learner, toys.Loader([(logits, target)]), verbose=False)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("metrics", "logits", "target", "says"),
    [
        (classification_metrics(), (4, 3), (5,), "logits (4, 3) and labels (5,) of classes do not fit"),
        (classification_metrics(), (3, 3), (3, 4), "logits (3, 3) and labels (3, 4) of classes do not fit"),
        (multilabel_metrics(), (4, 3), (4,), "outputs (4, 3) and labels (4,) (multilabel) differ in shape"),
        (multilabel_metrics(), (4, 3), (1, 3), "differ in shape"),
        (regression_metrics(), (4, 3), (4, 1), "outputs (4, 3) and labels (4, 1) (values) differ in shape"),
    ],
)
def test_nothing_is_broadcast(metrics, logits, target, says, tmp_path):
    learner = Classifier(Scaled(), metrics=metrics)
    batch = torch.zeros(logits), torch.zeros(target, dtype=torch.long)
    with pytest.raises(UsageError) as refusal:
        toys.trainer(tmp_path).validate(learner, toys.Loader([batch]), verbose=False)
    assert says in str(refusal.value)


# ---- whose metrics


def test_any_torchmetrics_collection_is_computed_and_chooses_the_best_checkpoint(tmp_path):
    metrics = MetricCollection({"f1": MulticlassF1Score(CLASSES), "ece": MulticlassCalibrationError(CLASSES)})
    learner = Classifier(Scaled(), metrics=metrics)
    assert (learner.monitor, learner.mode) == ("val/ece", "min")
    logits, labels = torch.randn(ROWS, CLASSES), indices(-100)
    (found,) = toys.trainer(tmp_path).validate(learner, batches(logits, labels, 5), verbose=False)
    kept = labels != -100
    expected = {name: metric(logits[kept], labels[kept]) for name, metric in metrics.clone().items()}
    assert found == pytest.approx({f"val/{name}": value.item() for name, value in expected.items()}, rel=1e-5)


def test_foreign_metrics_of_classes_get_indices_and_those_of_several_labels_probabilities(tmp_path):
    logits, labels = torch.rand(ROWS, CLASSES), soft(CLASSES)
    learner = Classifier(Scaled(), metrics=MetricCollection({"f1": MulticlassF1Score(CLASSES)}))
    (found,) = toys.trainer(tmp_path).validate(learner, batches(logits, labels, 5), verbose=False)
    assert found["val/f1"] == pytest.approx(MulticlassF1Score(CLASSES)(logits, labels.argmax(dim=1)).item(), rel=1e-5)

    several = (labels > 0.3).long()
    precision = MultilabelAveragePrecision(CLASSES)
    learner = Classifier(Scaled(), metrics=Metrics({"map": precision}, "multilabel"))
    (found,) = toys.trainer(tmp_path).validate(learner, batches(logits, several, 5), verbose=False)
    assert found["val/map"] == pytest.approx(MultilabelAveragePrecision(CLASSES)(logits, several).item(), rel=1e-5)


def test_the_monitor_can_be_chosen_and_an_unknown_metric_is_refused():
    assert Classifier(Scaled()).monitor == "val/acc"
    two = {"acc": Accuracy(), "mse": MeanSquaredError()}
    learner = Classifier(Scaled(), metrics=Metrics(two, monitor="mse"))
    assert (learner.monitor, learner.mode) == ("val/mse", "min")
    with pytest.raises(UsageError, match="monitor='f1' is none of the metrics acc, mse"):
        Metrics(two, monitor="f1")

    class Undecided(Accuracy):
        higher_is_better = None

    with pytest.raises(UsageError, match="Undecided does not declare higher_is_better: set mode"):
        Metrics({"u": Undecided()})
    assert Metrics({"u": Undecided()}, mode="min").mode == "min"


def test_a_scheme_can_bring_metrics_and_a_monitor_of_its_own(tmp_path):
    class Scheme(Classifier):
        monitor = "val/f1"
        mode = "max"

        def configure_metrics(self) -> MetricCollection:
            return MetricCollection({"f1": MulticlassF1Score(CLASSES), "acc": Accuracy()})

    learner = Scheme(Scaled())
    assert (learner.monitor, learner.mode) == ("val/f1", "max")
    (found,) = toys.trainer(tmp_path).validate(
        learner, batches(torch.randn(ROWS, CLASSES), indices(), 5), verbose=False
    )
    assert set(found) == {"val/f1", "val/acc"}


# ---- several loaders


def test_several_loaders_are_measured_by_name_and_together(tmp_path):
    x, y = torch.randn(ROWS, CLASSES), indices()
    loaders = {"digits": batches(x[:7], y[:7], 3), "letters": batches(x[7:], y[7:], 4)}
    learner = Classifier(Scaled())
    (found,) = toys.trainer(tmp_path).validate(learner, loaders, verbose=False)[:1]
    right = (x.argmax(1) == y).float()
    expected = {"val/acc": right, "val/acc/digits": right[:7], "val/acc/letters": right[7:]}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.mean().item(), abs=1e-6)
    assert found["val/nll/letters"] == pytest.approx(functional.cross_entropy(x[7:], y[7:]).item(), rel=1e-5)

    (found,) = toys.trainer(tmp_path).test(learner, list(loaders.values()), verbose=False)[:1]
    assert found["test/acc/1"] == pytest.approx(right[7:].mean().item(), abs=1e-6)


def test_a_label_of_another_name_is_evaluated(tmp_path):
    class Named(Scaled):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)

    x, y = torch.randn(ROWS, CLASSES), indices()
    learner = Classifier(Named(), {"task": Term(TaskLoss(), teacher=None, target="digit")})
    loader = toys.Loader([{"image": x, "digit": y}])
    (found,) = toys.trainer(tmp_path).validate(learner, loader, verbose=False)
    assert found["val/acc"] == pytest.approx((x.argmax(1) == y).float().mean().item(), abs=1e-6)
