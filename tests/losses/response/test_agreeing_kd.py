import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import AgreeingKDLoss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import Plain

# away from the teacher some samples do not count, and the sum may be smaller than nearer by
CASES = {
    "AgreeingKDLoss": Case(
        student=(6, 2), teacher=(6, 2), kinked=True, minimum="elsewhere"
    )  # of two classes: some agree
}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_divergence_of_samples_with_the_same_prediction(temperature: float):
    student, teacher = 3 * torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, agreeing = 0.0, 0
    for s, t in naive.pairs(student, teacher):
        if s.index(max(s)) == t.index(max(t)):
            agreeing += 1
            p = naive.softmax([value / temperature for value in t])
            logs = (naive.log_softmax([value / temperature for value in side]) for side in (t, s))
            total += sum(p_c * (a - b) for p_c, a, b in zip(p, *logs, strict=True))
    assert 5 < agreeing < 35
    expected = temperature**2 * total / 40
    assert AgreeingKDLoss(temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert AgreeingKDLoss()(student, student).item() == 0


def plain_agreeing_kd(m, s, t, y):
    rows = F.kl_div(F.log_softmax(s, 1), F.log_softmax(t, 1), reduction="none", log_target=True).sum(1)
    return (rows * (s.argmax(1) == t.argmax(1))).mean()


PLAIN = {
    "AgreeingKDLoss": Plain(plain_agreeing_kd),
}
