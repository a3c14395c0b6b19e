"""Mistakes in Python, each made with a Learner and with the drop-in: one line of ours, or one warning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from kd_lightning import Classifier, OfflineDistiller, Term, UsageError, load_teacher
from kd_lightning.callbacks import Distillation
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import DKDLoss, FeatureMSELoss, HintLoss, KDLoss, TaskLoss
from tests import toys
from tests.callbacks import drop_in

FEATURES, CLASSES, SAMPLES = drop_in.FEATURES, drop_in.CLASSES, 64


class Changed(nn.Module):
    """A network whose outputs a function changes."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.network(x))


class Loss(nn.Module):
    """A loss that a function computes."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Any:
        return self.function(student, teacher)


def student(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), *layers, nn.Linear(8, CLASSES))


def inputs(value: float | None = None) -> Tensor:
    """Inputs of which one may be damaged."""
    x = torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(0))
    if value is not None:
        x[3, 2] = value
    return x


def classes() -> Tensor:
    return torch.arange(SAMPLES) % CLASSES


def loader(x: Tensor | None = None, y: Tensor | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs() if x is None else x, classes() if y is None else y), batch_size=32)


def damaged(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(network.parameters())[0] = torch.nan
    return network


def weighed(weight: float) -> dict[str, Term]:
    term = Term(KDLoss(3.0))
    term.weight = weight  # as a callback sets it
    return {"kd": term}


def taught_by(change: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Changed(drop_in.teacher(), change)


class Fault(NamedTuple):
    """What is wrong in a fit, and a part of the line that says so; of a warning, if it may be meant."""

    says: str
    student: Callable[[], nn.Module] = student
    teacher: Callable[[], nn.Module] = drop_in.teacher
    terms: Callable[[], Any] = lambda: {"kd": Term(KDLoss(3.0))}
    data: Callable[[], Any] = loader
    warns: bool = False
    in_the_drop_in: bool = True
    """False where the fault is met first in the code of the user's own module, whose error stays as it is."""


def layers(student: str, teacher: str, loss: Callable[[], nn.Module] = FeatureMSELoss) -> Callable[[], dict[str, Term]]:
    return lambda: {"f": Term(loss(), student=student, teacher=teacher)}


def task(**changes: Any) -> Callable[[], dict[str, Term]]:
    return lambda: {"task": Term(TaskLoss(), teacher=None, **changes)}


FAULTS = {
    "student in eval": Fault("in eval mode", lambda: student(nn.BatchNorm1d(8)).eval()),
    "student's probabilities": Fault(
        "the student's logits are probabilities", lambda: student(nn.Softmax(1)).append(nn.Softmax(1))
    ),
    "student's width": Fault("cannot take its input", lambda: nn.Linear(FEATURES + 1, CLASSES), in_the_drop_in=False),
    "student in double": Fault("convert one of the two", lambda: student().double(), in_the_drop_in=False),
    "student's weight NaN": Fault("is not finite", lambda: damaged(student())),
    "student frozen": Fault("learn|cannot teach", lambda: student().requires_grad_(False)),
    "student is detached": Fault("cannot teach", lambda: Changed(student(), lambda z: z.detach())),
    "teacher's probabilities": Fault(
        "the teacher's logits are probabilities", teacher=taught_by(lambda z: z.softmax(1))
    ),
    "teacher constant": Fault(
        "the same logits for all", teacher=taught_by(lambda z: 0 * z + torch.arange(5)), warns=True
    ),
    "teacher NaN": Fault("teacher's logits is not finite", teacher=taught_by(lambda z: torch.nan * z)),
    "teacher infinite": Fault("teacher's logits is not finite", teacher=taught_by(lambda z: z + torch.inf)),
    "teacher's weight NaN": Fault("not finite", teacher=lambda: damaged(drop_in.teacher())),
    "teacher's rows moved": Fault("no more than chance", teacher=taught_by(lambda z: z.roll(1, 0)), warns=True),
    "teacher gives classes": Fault(
        "logits are of int64", teacher=taught_by(lambda z: z.argmax(1, keepdim=True).expand(-1, 5))
    ),
    "teacher gives a comparison": Fault("logits are of bool", teacher=taught_by(lambda z: z > 0)),
    "teacher gives a tuple": Fault("gave tuple, not a tensor", teacher=taught_by(lambda z: (z, z))),
    "teacher gives a dict": Fault("gave dict, not a tensor", teacher=taught_by(lambda z: {"out": z})),
    "teacher gives nothing": Fault("gave NoneType, not a tensor", teacher=taught_by(lambda z: None)),
    "teacher in half": Fault("weights are float16", teacher=lambda: drop_in.teacher().half()),
    "teacher in double": Fault("weights are float64", teacher=lambda: drop_in.teacher().double()),
    "teacher's classes": Fault("num_classes", teacher=lambda: nn.Linear(FEATURES, 7)),
    "teacher's width": Fault("the teacher Linear cannot take", teacher=lambda: nn.Linear(FEATURES + 1, CLASSES)),
    "label of no class": Fault(
        "none of the 5 classes", terms=task(), data=lambda: loader(y=classes() + 1), in_the_drop_in=False
    ),
    "negative label": Fault(
        "none of the 5 classes", terms=task(), data=lambda: loader(y=classes() - 1), in_the_drop_in=False
    ),
    "labels that no term needs": Fault(
        "none of the 5 classes", data=lambda: loader(y=classes() + 1), warns=True, in_the_drop_in=False
    ),
    "labels of several classes": Fault(
        "do not sum to 1", data=lambda: loader(y=(torch.rand(SAMPLES, CLASSES) > 0.5).float())
    ),
    "real labels": Fault("do not fit", terms=task(), data=lambda: loader(y=torch.rand(SAMPLES)), in_the_drop_in=False),
    "labels (N, 1)": Fault("do not fit", terms=task(), data=lambda: loader(y=classes()[:, None]), in_the_drop_in=False),
    "one-hot integers": Fault(
        "do not fit", terms=task(), data=lambda: loader(y=torch.eye(5).long()[classes()]), in_the_drop_in=False
    ),
    "labels of other rows": Fault(
        "do not fit", terms=task(), data=lambda: toys.Loader([(inputs(), classes()[:7])]), in_the_drop_in=False
    ),
    "labels of text": Fault(
        "'target' of the batch is a list",
        terms=task(),
        data=lambda: toys.Loader([(inputs()[:2], ["a", "b"])]),
        in_the_drop_in=False,
    ),
    "no labels": Fault(
        "needs the label 'target'", terms=task(), data=lambda: toys.Loader([inputs()]), in_the_drop_in=False
    ),
    "inputs in double": Fault("of float64", data=lambda: loader(inputs().double()), in_the_drop_in=False),
    "inputs in bytes": Fault("x.float", data=lambda: loader(inputs().byte()), in_the_drop_in=False),
    "inputs NaN": Fault("not finite", data=lambda: loader(inputs(torch.nan))),
    "inputs infinite": Fault("not finite", data=lambda: loader(inputs(torch.inf))),
    "inputs of text": Fault(
        "cannot take its input", data=lambda: toys.Loader([(["a"], classes()[:1])]), in_the_drop_in=False
    ),
    "a batch of four": Fault("a batch of 4 parts", data=lambda: toys.Loader([(inputs(),) * 4]), in_the_drop_in=False),
    "a batch of none": Fault("a batch is empty", data=lambda: toys.Loader([()]), in_the_drop_in=False),
    "a batch of no rows": Fault("N >= 1", data=lambda: toys.Loader([(inputs()[:0], classes()[:0])])),
    "weight NaN by a callback": Fault("not finite", terms=lambda: weighed(torch.nan)),
    "student's layer": Fault("no layer 'o'", terms=layers("o", "0")),
    "teacher's layer": Fault("no layer 'zz'", terms=layers("0", "zz")),
    "layers of two widths": Fault("must have the same shape", terms=layers("0", "0")),
    "vectors for maps": Fault("address convolutional layers", terms=layers("0", "0", partial(HintLoss, 8, 16))),
    "another label": Fault("needs the label 'label2'", terms=task(target="label2")),
    "another mask": Fault("mask='m'", terms=lambda: {"kd": Term(KDLoss(3.0), mask="m")}),
    "a needed label is missing": Fault(
        "needs the label", terms=lambda: {"dkd": Term(DKDLoss(temperature=2.0), target="y")}
    ),
    "a detached loss": Fault(
        "cannot teach", terms=lambda: {"t": Term(Loss(lambda s, t: (s - t).square().mean().detach()))}
    ),
    "a loss of each sample": Fault(
        "not a scalar", terms=lambda: {"t": Term(Loss(lambda s, t: (s - t).square().mean(1)))}
    ),
    "a number as loss": Fault("not a scalar", terms=lambda: {"t": Term(Loss(lambda s, t: 1.0))}),
    "no terms": Fault("terms is empty", terms=dict),
    "a list of terms": Fault("terms is a list", terms=lambda: [Term(KDLoss(3.0))]),
    "a loss for a term": Fault("must be a Term", terms=lambda: {"kd": KDLoss(3.0)}),
    "a name with a dot": Fault("cannot be called 'k.d'", terms=lambda: {"k.d": Term(KDLoss(3.0))}),
}


def fit_learner(folder: Any, fault: Fault) -> None:
    learner = OfflineDistiller(fault.student(), fault.teacher(), fault.terms())
    toys.trainer(folder, max_epochs=1).fit(learner, fault.data())


def fit_drop_in(folder: Any, fault: Fault) -> None:
    module = drop_in.Theirs()
    module.backbone = fault.student()
    callback = Distillation("backbone", fault.teacher(), fault.terms())
    toys.trainer(folder, callback, max_epochs=1).fit(module, fault.data())


LEARNERS = [pytest.param(fit_learner, fault, id=f"{name}, learner") for name, fault in FAULTS.items()]
DROP_INS = [
    pytest.param(fit_drop_in, fault, id=f"{name}, drop-in") for name, fault in FAULTS.items() if fault.in_the_drop_in
]


@pytest.mark.parametrize(("fit", "fault"), [*LEARNERS, *DROP_INS])
def test_a_mistake_is_one_line(fit, fault, tmp_path):
    if fault.warns:
        with pytest.warns(UserWarning, match=fault.says):
            fit(tmp_path, fault)
        return
    with pytest.raises(UsageError, match=fault.says) as caught:
        fit(tmp_path, fault)
    assert "\n" not in str(caught.value)


PARAMETER = [nn.Parameter(torch.zeros(1))]
BUILT = torch.optim.SGD(PARAMETER, lr=0.1)
ARGUMENTS = {
    "a built optimizer": (lambda: Classifier(student(), optimizer=BUILT), "optimizer is a SGD, and each fit builds"),
    "a built scheduler": (
        lambda: Classifier(student(), lr_scheduler=torch.optim.lr_scheduler.StepLR(BUILT, 1)),
        "lr_scheduler is a StepLR",
    ),
    "an interval": (lambda: Classifier(student(), lr_interval="batch"), "lr_interval='batch' is neither"),
    "one network twice": (
        lambda: (lambda network: OfflineDistiller(network, network, {"kd": Term(KDLoss(2.0))}))(student()),
        "share parameters that learn",
    ),
    "temperature 0": (lambda: KDLoss(0), "temperature=0 must be"),
    "temperature of text": (lambda: KDLoss("4"), "temperature='4' must be"),
    "no temperature": (lambda: KDLoss(None), "temperature=None must be"),
    "weight of text": (lambda: Term(KDLoss(2.0), weight="1"), "weight='1' of a KDLoss"),
    "no weight": (lambda: Term(KDLoss(2.0), weight=None), "weight=None of a KDLoss"),
    "weight NaN": (lambda: Term(KDLoss(2.0), weight=torch.nan), "weight=nan of a KDLoss"),
    "no side": (lambda: Term(KDLoss(2.0), student=None, teacher=None), "no layer to compare"),
    "a batch size of 0": (lambda: MNISTDataModule(batch_size=0), "batch_size=0"),
    "too many images": (lambda: MNISTDataModule(train_size=10**6).setup("fit"), "exceed the 60000 images"),
    "a teacher's missing file": (lambda: load_teacher(student(), "nowhere.ckpt"), "no such file"),
    "no file of the teacher": (lambda: load_teacher(student(), None), "None is no path of the teacher"),
}


@pytest.mark.parametrize(("build", "says"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_wrong_argument_is_one_line(build, says):
    with pytest.raises(UsageError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_single_metric_is_as_good_as_a_collection(tmp_path):
    metric = Accuracy("multiclass", num_classes=CLASSES)
    run = toys.trainer(tmp_path, max_epochs=1)
    run.fit(Classifier(student(), metrics=metric), loader(), loader())
    assert 0 <= run.callback_metrics["val/MulticlassAccuracy"] <= 1
