from __future__ import annotations

import pytest
import torch

from kd_lightning.losses.common.vectors import pooled, unit


@pytest.mark.parametrize(("shortest", "row"), [(5.0, [0.0, 0.0]), (4.9, [0.6, 0.8]), (0.0, [0.6, 0.8])])
def test_vectors_up_to_the_shortest_length_become_0(shortest, row):
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = unit(vectors, shortest)
    torch.testing.assert_close(found, torch.tensor([row, [0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(found[1].sum(), vectors)
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
def test_features_are_averaged_over_all_their_positions(shape):
    features = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(features), features.reshape(2, 3, -1).mean(dim=2))
    assert pooled(features.half()).dtype == torch.float32
