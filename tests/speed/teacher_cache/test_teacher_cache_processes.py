"""Two processes cache what one would. As a program, this is one rank, which writes what it computed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import TeacherCache
from kd_lightning.losses import EnsembleLoss, KDLoss
from kd_lightning.networks import Ensemble
from tests import toys
from tests.ranks import run_two, two_processes

pytestmark = two_processes
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "views": {"num_augmented_views": 2, "augmentation": toys.Noise()},
    "halves": {"precision": "bf16-mixed"},
}
FOLDERS = {"": None, "file": {}, "map": {"memory_limit_mib": 1e-4}}


class KeepsTable(Callback):
    """Keeps what the cache holds, by the rows' indices, and how many rows the teacher was asked about before."""

    def on_train_start(self, trainer, pl_module):
        (cache,) = (callback for callback in trainer.callbacks if isinstance(callback, TeacherCache))
        table = cache._table
        self.rows = table.position_of[: table.last]
        self.found = {"fingerprints": table.fingerprints.clone()}
        self.found |= {layer: values.clone() for layer, values in table.outputs.items()}
        self.asked = sum(pl_module.asked)

    def by_index(self) -> dict[str, Tensor]:
        """What the tables hold of each index; view by view, and what stands for none."""
        rows, none = self.rows, len(self.found["fingerprints"]) - 1
        there = rows[rows < none]
        views = [there + view * len(there) for view in range(none // len(there))]
        return {name: torch.cat([*(table[view] for view in views), table[-1:]]) for name, table in self.found.items()}


class Counts(OfflineDistiller):
    """Counts the rows that its teacher is asked about; of a number that processes share unevenly."""

    def __init__(self) -> None:
        teacher = Ensemble([toys.network(16, seed=2), toys.network(12, seed=3)])
        terms = {"kd": Term(EnsembleLoss(KDLoss(3.0))), "hint": Term(Wide(), student="2", teacher="members.0.2")}
        super().__init__(toys.network(seed=1), teacher, terms, lambda p: torch.optim.SGD(p, lr=0.1))
        self.asked: list[int] = []

    def run_teacher(self, batch):
        self.asked.append(len(batch.labels["index"]))
        return super().run_teacher(batch)


class Wide(torch.nn.Module):
    def forward(self, student, teacher, target=None):
        return (student.mean(dim=1) - teacher.mean(dim=1)).square().mean()


def fit(folder: Path, ranks: int, changes: dict[str, Any], cache: TeacherCache) -> tuple[dict[str, Tensor], int]:
    """What the cache held, with the parameters in the end, and the rows that this process asked about."""
    tables, module = KeepsTable(), Counts()
    parallel: dict[str, Any] = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    parallel["precision"] = changes.get("precision", "32-true")
    data = {"augmentation": None, "train_size": 67, "eval_batch_size": 9, "batch_size": 16 // ranks} | changes
    data.pop("precision", None)
    toys.trainer(folder, cache, tables, max_epochs=2, **parallel).fit(module, toys.data(**data))
    return tables.by_index() | dict(module.student.named_parameters()), tables.asked


def runs(folder: Path, ranks: int) -> dict[str, Any]:
    """Each kind of run in memory, and with a folder twice."""
    found: dict[str, Any] = {}
    for name, changes in RUNS.items():
        for kind, limits in FOLDERS.items():
            for again in range(1 if limits is None else 2):
                cache = TeacherCache() if limits is None else TeacherCache(folder / name / kind, **limits)
                found[f"{name} {kind} {again}"] = fit(folder, ranks, changes, cache)
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder in which two ranks have left what they computed."""
    out = tmp_path_factory.mktemp("two_processes")
    run_two("tests.speed.teacher_cache.test_teacher_cache_processes", out)
    return out


@pytest.fixture(scope="module")
def ranks(out):
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {name: fit(folder, 1, changes, TeacherCache()) for name, changes in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", FOLDERS)
def test_two_ranks_hold_what_one_process_holds_and_the_same_on_both(name, kind, ranks, one):
    truth, _ = one[name]
    views = RUNS[name].get("num_augmented_views", 1)
    tolerance = 1e-6 if name != "halves" else 2e-2
    assert truth["fingerprints"].shape == (67 * views + 1,)
    assert truth["logits"].shape == (67 * views + 1, 2, 10)
    for again in range(1 if kind == "" else 2):
        first, other = (rank["runs"][f"{name} {kind} {again}"][0] for rank in ranks)
        assert toys.same({k: v.nan_to_num() for k, v in first.items()}, {k: v.nan_to_num() for k, v in other.items()})
        assert first.keys() == truth.keys()
        assert torch.equal(first["fingerprints"], truth["fingerprints"])
        for part in ("logits", "members.0.2"):
            torch.testing.assert_close(first[part], truth[part], rtol=0, atol=tolerance, equal_nan=True)
            assert first[part][-1].isnan().all()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", FOLDERS)
def test_each_rank_asks_about_its_share_and_once(name, kind, ranks):
    views = RUNS[name].get("num_augmented_views", 1)
    asked = [rank["runs"][f"{name} {kind} 0"][1] for rank in ranks]
    assert asked == [34 * views, 33 * views]
    if kind:
        assert [rank["runs"][f"{name} {kind} 1"][1] for rank in ranks] == [0, 0]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["file", "map"])
def test_a_file_of_two_processes_is_one_processs_file(name, kind, out, ranks, tmp_path):
    assert len([*(out / name / kind).iterdir()]) == 1
    held, asked = fit(tmp_path, 1, RUNS[name], TeacherCache(out / name / kind))
    assert asked == 0
    of_two = ranks[0]["runs"][f"{name} {kind} 1"][0]
    for part in ("fingerprints", "logits", "members.0.2"):
        assert torch.equal(held[part].nan_to_num(), of_two[part].nan_to_num())


def test_what_keeps_one_process_from_writing_is_an_error_for_both(ranks):
    for rank in ranks:
        assert rank["unwritable"] == rank["unwritable"].splitlines()[0]
        assert rank["unwritable"].startswith("TeacherCache cannot write to cache_dir=")
        assert "does not exist for all processes: give TeacherCache a cache_dir that they share" in rank["not shared"]


def refused(folder: Path, cache: TeacherCache) -> str:
    with pytest.raises(OSError) as failure:  # noqa: PT011 (the test looks at it)
        fit(folder, 2, {}, cache)
    return str(failure.value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), os.environ["LOCAL_RANK"]
    torch.distributed.init_process_group("gloo", rank=int(rank))  # Lightning takes it as it is
    found: dict[str, Any] = {"runs": runs(out, 2)}
    if rank == "0":
        (out / "a file").touch()
    torch.distributed.barrier()
    found["unwritable"] = refused(out, TeacherCache(out / "a file"))
    found["not shared"] = refused(out, TeacherCache(out / f"of {rank}"))
    torch.save(found, out / f"rank-{rank}.pt")
