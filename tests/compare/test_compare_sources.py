"""A stored result stands while the sources of its classes are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_plan import new_plan, write

from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.sources import source_files, sources_hash

FILES = {
    "my_losses.py": "from my_helpers import sign\nimport my_pack.deep\n",
    "my_helpers.py": "sign = 1\n",
    "my_pack/__init__.py": "from . import near\n",
    "my_pack/near.py": "near = 1\n",
    "my_pack/deep.py": "from my_pack.inner import other\n",
    "my_pack/inner/__init__.py": "other = 1\n",
    "my_pack/unused.py": "unused = 1\n",
    "loose/part.py": "part = 1\n",
}
CONFIG: dict[str, Any] = {"model": {"terms": {"kd": {"loss": {"class_path": "my_losses.Own", "init_args": {"a": 1}}}}}}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_class_brings_its_file_and_what_that_imports(theirs: Path) -> None:
    found = {path.relative_to(theirs).as_posix() for path in source_files("my_losses.Own")}
    assert found == {*FILES} - {"my_pack/unused.py", "loose/part.py"}
    assert source_files("loose.part.Own") == {theirs / "loose/part.py"}
    assert source_files("numpy.ndarray") == source_files("json.JSONDecoder") == set()


@pytest.mark.parametrize("changed", ["my_losses.py", "my_helpers.py", "my_pack/inner/__init__.py"])
def test_a_changed_file_changes_the_hash_and_its_place_does_not(theirs: Path, changed: str) -> None:
    before = sources_hash(CONFIG)
    (theirs / changed).write_text((theirs / changed).read_text() + "# another\n")
    assert sources_hash(CONFIG) != before
    (theirs / changed).write_text(FILES[changed])
    (theirs / "my_pack/unused.py").write_text("")
    assert sources_hash(CONFIG) == before


def test_a_run_with_an_inverted_loss_is_another_run(theirs: Path) -> None:
    plan = new_plan()
    terms = {"task": {"loss": {"class_path": "my_losses.Own"}, "teacher": None}}
    plan["groups"]["digits"]["variants"]["alone"]["overrides"] = {"model": {"init_args": {"terms": terms}}}
    (run, *_) = read_plan(write(theirs, plan)).variants[1].runs
    before = run.digest(theirs)
    (theirs / "my_losses.py").write_text(FILES["my_losses.py"] + "SIGN = -1\n")
    assert run.digest(theirs) != before


def test_sources_are_read_and_not_imported(theirs: Path) -> None:
    (theirs / "my_losses.py").write_text("raise SystemExit(3)\n")
    program = (
        "import sys; from kd_lightning.compare.plan.sources import sources_hash\n"
        f"sources_hash({CONFIG!r}); print('my_losses' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=theirs, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["False", "False"]
