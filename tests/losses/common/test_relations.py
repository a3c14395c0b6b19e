from __future__ import annotations

import torch

from kd_lightning.losses.common.relations import squared_distances


def test_distances_keep_their_digits_far_from_the_origin():
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) + 1000
    expected = torch.cdist(rows.double(), rows.double()).square()
    torch.testing.assert_close(squared_distances(rows).double(), expected, rtol=1e-4, atol=1e-4)
