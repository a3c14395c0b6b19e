from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from kd_lightning import Classifier
from kd_lightning.core.optimizers import build_optimizer
from tests import toys


@pytest.mark.parametrize("build", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_a_step_in_float16_is_finite(build):
    parameter = nn.Parameter(torch.ones(4, dtype=torch.float16))
    with pytest.warns(UserWarning, match=r"eps=1e-08 of .* is 0 in float16"):
        optimizer = build_optimizer(build, [parameter], "it")
    parameter.grad = torch.tensor([0.0, 1e-5, 1e-3, 1.0], dtype=torch.float16)
    optimizer.step()
    assert parameter.isfinite().all()
    assert (parameter - 1).abs().max() < 0.2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("dtype", "build", "eps"),
    [
        (torch.float32, torch.optim.Adam, 1e-8),
        (torch.bfloat16, torch.optim.Adam, 1e-8),
        (torch.float16, partial(torch.optim.Adam, eps=1e-3), 1e-3),
        (torch.float16, partial(torch.optim.SGD, lr=0.1), None),
    ],
)
def test_other_constants_stay_as_they_are(dtype, build, eps):
    optimizer = build_optimizer(build, [nn.Parameter(torch.ones(4, dtype=dtype))], "it")
    assert optimizer.param_groups[0].get("eps") == eps


@pytest.mark.filterwarnings("ignore:eps=1e-08")
def test_a_learner_trains_in_float16_with_the_default_optimizer(tmp_path):
    torch.manual_seed(0)
    learner = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, 10)))
    before = toys.weights(learner)
    run = toys.trainer(tmp_path, max_steps=3, precision="16-true")
    run.fit(learner, toys.data(augmentation=None))
    after = toys.weights(learner)
    assert run.global_step == 3
    assert all(value.isfinite().all() for value in after.values())
    assert not toys.same(before, after)
