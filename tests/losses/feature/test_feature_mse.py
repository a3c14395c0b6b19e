import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import FeatureMSELoss, feature_mse_loss
from tests.losses.case import Case
from tests.losses.plain import TEACHER, Plain

CASES = {"FeatureMSELoss": Case(student=(6, 3, 4, 4), teacher=(6, 3, 4, 4), wrong=[((6, 3), (6, 4)), ((6, 3), (5, 3))])}

SHAPES = [(1, 1), (3, 5), (2, 3, 4), (2, 3, 4, 5)]


def features(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_value_is_that_of_naive_loops(shape):
    student, teacher = features(shape, 1), features(shape, 2)
    squares = [(s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert FeatureMSELoss()(student, teacher).item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_are_those_of_the_value(shape):
    torch.autograd.gradcheck(
        feature_mse_loss, (features(shape, 1).requires_grad_(), features(shape, 2).requires_grad_())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_single_precision(dtype):
    student, teacher = ((1e4 * features((2, 512), seed).clamp(-1, 1)).to(dtype).requires_grad_() for seed in (1, 2))
    loss = feature_mse_loss(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(feature_mse_loss(student.double(), teacher.double()).item(), rel=1e-6)
    assert loss > 65504  # float16's largest
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3), (2, 4)),
        ((2, 3), (1, 3)),
        ((2, 3, 1, 1), (2, 3)),
        ((2, 3, 4, 4), (2, 3, 1, 1)),
        ((3,), (3,)),
        ((0, 3), (0, 3)),
    ],
)
def test_features_of_different_shapes_are_refused_with_both_shapes_and_the_remedy(student, teacher):
    with pytest.raises(ValueError, match="must have the same shape") as refusal:
        feature_mse_loss(torch.zeros(student), torch.zeros(teacher))
    assert f"student features {student} and teacher features {teacher}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


PLAIN = {
    "FeatureMSELoss": Plain(lambda m, s, t, y: F.mse_loss(s, t), TEACHER, TEACHER),
}
