"""What `Distillation` cannot do is refused in one line."""

from __future__ import annotations

import pytest
from torch import nn

from kd_lightning import Term, UsageError
from kd_lightning.callbacks import Distillation
from kd_lightning.losses import AdversarialLoss, JacobianLoss, KDLoss
from kd_lightning.networks import Discriminator
from tests.callbacks.drop_in import Hint, Theirs, distillation, fit, teacher


class Manual(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(Theirs):
    def configure_optimizers(self):
        return super().configure_optimizers(), super().configure_optimizers()


class NoOptimizer(Theirs):
    def configure_optimizers(self):
        return None


class Never(Theirs):
    def forward(self, x):
        return x @ self.backbone[0].weight.T


class Views(Theirs):
    def forward(self, x):
        return self.backbone(x) + self.backbone(x.flip(0))


class Overwrites(Theirs):
    def forward(self, x):
        logits = super().forward(x)
        x.mul_(2)
        return logits


REFUSED = {
    "manual": (Manual, distillation, "Manual has manual optimization, and so no single loss .* in training_step"),
    "several optimizers": (TwoOptimizers, distillation, "TwoOptimizers has 2 optimizers, and so no single loss"),
    "no optimizer": (NoOptimizer, distillation, "NoOptimizer has no optimizer to train hint.loss.connector.weight"),
    "no student": (Theirs, lambda: distillation("bakbone"), "no network 'bakbone' .* nearest names are backbone"),
    "nothing like it": (Theirs, lambda: distillation("zzz"), "no network 'zzz' .* are backbone, backbone.0"),
    "never": (Never, distillation, r"'backbone' of Never did not run in training_step: name the network"),
    "twice": (Views, distillation, r"'backbone' of Views ran 2 times in training_step.* one call"),
    "overwritten": (Overwrites, distillation, "the input of the student 'backbone' of Overwrites was overwritten"),
    "no layer": (
        Theirs,
        lambda: distillation(terms={"hint": Term(Hint(), student="11", teacher="1")}),
        "has no layer '11'; the nearest names",
    ),
    "not finite": (
        Theirs,
        lambda: distillation(terms={"kd": Term(KDLoss(), float(2)), "bad": Term(NotFinite())}),
        r"the loss of term 'bad' is not finite at step 0 \(kd=.*, bad=nan\)",
    ),
}


class NotFinite(nn.Module):
    def forward(self, student, teacher, target=None):
        return student.sum() * float("nan")


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_a_line_that_says_what_to_do(name, tmp_path):
    build, drop_in, complaint = REFUSED[name]
    module = build()
    with pytest.raises(UsageError, match=complaint) as refusal:
        fit(module, drop_in(), folder=tmp_path)
    assert "\n" not in str(refusal.value)
    assert list(dict(module.named_children())) == ["backbone"]


def test_a_teacher_that_shares_parameters_with_the_student_is_refused(tmp_path):
    module = Theirs()
    with pytest.raises(ValueError, match=r"the teacher and the student 'backbone' share parameters.*copy one of them"):
        fit(module, distillation(teacher=nn.Sequential(module.backbone, nn.Tanh())), folder=tmp_path)


def test_terms_are_checked_at_construction():
    with pytest.raises(ValueError, match="terms is empty"):
        Distillation("backbone", teacher(), {})
    with pytest.raises(ValueError, match=r"cannot be called 'a\.b'"):
        Distillation("backbone", teacher(), {"a.b": Term(KDLoss())})


@pytest.mark.parametrize(
    ("loss", "scheme"),
    [(AdversarialLoss(Discriminator(10)), "AdversarialDistiller"), (JacobianLoss(), "OfflineDistiller")],
)
def test_what_needs_a_step_of_its_own_is_refused(loss, scheme):
    with pytest.raises(ValueError, match=rf"term 'it': {type(loss).__name__} needs a training step .* use {scheme}"):
        Distillation(teacher=nn.Linear(2, 10), student="net", terms={"it": Term(loss)})
