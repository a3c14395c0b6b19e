"""RKD's angles of a large batch are shared by two processes; run as a program, this file is one rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Term
from kd_lightning.losses import RKDLoss
from kd_lightning.losses.relation import rkd
from tests.ranks import run_two, two_processes

pytestmark = two_processes
SAMPLES = 160  # whose angles are not in memory all at once


def many_angles(ranks: int) -> dict[str, Any]:
    """Value, gradient of one process with the whole batch, and the vertices that this process has computed."""
    of_all = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(0))
    rows = of_all.chunk(ranks)[int(os.environ["LOCAL_RANK"]) if ranks > 1 else 0]
    torch.manual_seed(0)
    student, teacher = nn.Linear(5, 4), nn.Linear(5, 6)
    computed, cosines = set[int](), rkd._cosines

    def recorded(lengths: Tensor, at: slice) -> Tensor:
        computed.update(range(*at.indices(len(lengths))))
        return cosines(lengths, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rkd, "_cosines", recorded)
        loss = Term(RKDLoss())({"logits": student(rows)}, {"logits": teacher(rows).detach()}, {})
        (gradient,) = torch.autograd.grad(loss, student.weight)
    if ranks > 1:
        torch.distributed.all_reduce(gradient)
    return {"loss": loss.detach(), "gradient": gradient / ranks, "vertices": sorted(computed)}


def test_each_process_computes_its_own_share_of_the_angles(tmp_path):
    run_two("tests.losses.relation.test_rkd_processes", tmp_path)
    one, shares = many_angles(1), [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert one["vertices"] == [*range(SAMPLES)] == sorted(shares[0]["vertices"] + shares[1]["vertices"])
    for share in shares:
        torch.testing.assert_close(share["loss"], one["loss"])
        torch.testing.assert_close(share["gradient"], one["gradient"])


if __name__ == "__main__":
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank)
    torch.save(many_angles(2), Path(sys.argv[1]) / f"{rank}.pt")
