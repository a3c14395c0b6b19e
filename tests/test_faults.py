"""`make test-faults`, in small: faults of each kind are injected, and what they damage would be found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import SERVER

ONE_OF_EACH = {
    "response": (
        "middle, checkpoint 2, TMPDIR apart",
        "SIGTERM, validation",
        "SIGINT, after step",
        "not finite, gradient",
        "disk, full, rename",
        "damaged file, a bit",
        "second process, resumes",
    ),
    "drop-in": ("rename, checkpoint 3, TMPDIR beside", "SIGINT, forward", "not finite, output"),
}
TORN, HALF_STEP = "middle, checkpoint 2, TMPDIR beside", "SIGINT, after step"


def verdicts(folder: Path, chosen: dict[str, tuple[str, ...]], damage: str = "") -> list[dict[str, Any]]:
    """Inject faults in a process that has computed nothing, as `python -m benchmarks.faults` does."""
    process = SERVER.Process(target=_try, args=(folder, chosen, damage))
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "results.json").read_text())


def _try(folder: Path, chosen: dict[str, tuple[str, ...]], damage: str) -> None:
    from benchmarks.faults import __main__ as program, kinds, trial

    program.prepare()
    if damage:
        globals()[damage]()
    found = []
    for family, names in chosen.items():
        truth = trial.truth_of(family, folder)
        of_family = [
            fault for fault in kinds.faults(family) if any(name in f"{fault.kind}, {fault.detail}" for name in names)
        ]
        found += [trial.try_fault(family, fault, truth, folder) for fault in of_family]
    (folder / "results.json").write_text(trial.as_json(found))


def write_in_place() -> None:
    """Checkpoints are written over the former ones."""
    from kd_lightning.core import files

    begin: Any = files.AtomicFile.__init__

    def in_place(file: Any, directory: Path, name: str, *rest: str) -> None:
        begin(file, directory, name, *rest)
        file.temporary.unlink()
        file.stream = (directory / name).open("w+b")

    changed: Any = files.AtomicFile
    changed.__init__, changed.commit = in_place, lambda file, path: file.stream.close()


def save_anywhere() -> None:
    """An interrupt is not deferred, and saves whatever there is."""
    from kd_lightning.callbacks.fault_tolerance import callback

    def is_resume_point(trainer: Any) -> bool:
        return True

    vars(callback)["is_resume_point"] = is_resume_point
    vars(callback)["DeferredSignals"] = lambda *_: None


def problems(verdict: dict[str, Any]) -> dict[str, list[str]]:
    return {name: found for name, found in verdict.items() if isinstance(found, list) and found}


@pytest.mark.slow
def test_a_fault_of_each_kind_loses_nothing(tmp_path):
    found = verdicts(tmp_path, ONE_OF_EACH)
    assert len(found) == sum(map(len, ONE_OF_EACH.values()))
    assert [(each["family"], each["kind"], each["detail"], problems(each)) for each in found if problems(each)] == []


@pytest.mark.parametrize(
    ("damage", "fault", "columns"),
    [
        ("write_in_place", TORN, {"unreadable"}),
        pytest.param("save_anywhere", HALF_STEP, {"unequal"}, marks=pytest.mark.slow),  # three runs of its own
    ],
)
def test_damage_would_be_found(damage, fault, columns, tmp_path):
    [verdict] = verdicts(tmp_path, {"response": (fault,)}, damage)
    assert columns <= problems(verdict).keys()
