"""A number of a loss follows its schedule at every step, also after a resume."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import Constant, Cosine, LossSchedule, PiecewiseConstant
from kd_lightning.losses import CTKDLoss, EnsembleLoss, LogitMSELoss
from tests import toys


def learner() -> OfflineDistiller:
    terms = {"kd": Term(CTKDLoss()), "logits": Term(LogitMSELoss())}
    return OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), terms)


def schedules() -> list[Callback]:
    return [
        LossSchedule("kd", "reversal", Cosine(0.0, 1.0, duration=2), unit="epoch"),
        LossSchedule("logits", "teacher_scale", PiecewiseConstant({0: 0.1, 3: 0.2, 7: 1.0})),
    ]


CASES = {"LossSchedule": lambda: toys.Case(learner(), schedules())}


class Seen(Callback):
    """Both numbers in each batch, and if the temperature has a gradient."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []
        self.moved: list[bool] = []

    def on_after_backward(self, trainer, pl_module):
        kd, logits = (term.loss for term in pl_module.terms.values())
        self.values.append((kd.reversal, logits.teacher_scale))
        self.moved.append(bool(kd.theta.grad))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_every_batch_has_its_value_also_after_a_resume(tmp_path):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    seen = Seen()
    toys.trainer(tmp_path, seen, save, *schedules()).fit(learner(), toys.data())
    reversals = [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    scales = [0.1] * 3 + [0.2] * 4 + [1.0] * 5
    assert [value for value, _ in seen.values] == pytest.approx(reversals)
    assert [value for _, value in seen.values] == scales
    assert seen.moved == [reversal > 0 for reversal in reversals]  # at strength 0 the temperature stays
    again = Seen()
    (checkpoint,) = tmp_path.glob("*step=5.ckpt")
    toys.trainer(tmp_path, again, *schedules()).fit(learner(), toys.data(), ckpt_path=checkpoint)
    assert again.values == seen.values[5:]


def test_the_number_is_found_in_losses_within_losses():
    class Found(LossSchedule):
        def losses(self, module):
            self.on_fit_start(None, module)
            return self._losses

    terms = {"kd": Term(EnsembleLoss(LogitMSELoss()))}
    made = OfflineDistiller(toys.network(seed=1), toys.network(16, seed=2), terms)
    callback = Found("kd", "teacher_scale", Constant(0.5))
    assert callback.losses(made) == [terms["kd"].loss.loss]
    callback.apply(0.5)
    assert terms["kd"].loss.loss.teacher_scale == 0.5


@pytest.mark.parametrize(
    ("term", "number", "complaint"),
    [
        ("kdd", "reversal", "no term 'kdd'.*nearest names are kd"),
        ("kd", "reverse", "the loss of kd has no 'reverse' to schedule; it has lowest, reversal, width"),
        ("kd", "theta", "the loss of kd has no 'theta' to schedule"),
        ("logits", "training", "has no 'training' to schedule; it has teacher_scale"),
    ],
)
def test_an_unknown_number_or_term_raises_before_the_first_step(term, number, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        toys.trainer(tmp_path, LossSchedule(term, number, Constant(0.5))).fit(learner(), toys.data())


def test_a_value_out_of_the_range_of_the_loss_raises_at_its_step(tmp_path):
    with pytest.raises(ValueError, match=r"reversal=1.5 must lie in \[0, 1\]"):
        toys.trainer(tmp_path, LossSchedule("kd", "reversal", PiecewiseConstant({0: 0.5, 2: 1.5}))).fit(
            learner(), toys.data()
        )
