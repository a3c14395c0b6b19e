"""What the project says of itself is true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^ ]+", line) for line in lines), "names and versions only"
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def test_the_lock_holds_what_pyproject_asks_for():
    lock = locked()
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(lock[wanted.name.lower()]), f"{wanted} against {lock[wanted.name.lower()]}"


def test_importing_the_package_waits_for_nothing_heavy():
    loaded = _python(
        "import sys, kd_lightning; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    assert not {"torch", "lightning", "torchvision", "matplotlib", "scipy", "jsonargparse", "tensorboard"} & set(loaded)


def test_the_public_names_load_neither_torchvision_nor_matplotlib_nor_the_command_line():
    code = "import sys, kd_lightning as k, kd_lightning.callbacks, kd_lightning.data; [getattr(k, n) for n in dir(k)]"
    loaded = set(_python(f"{code}; print(*sys.modules)").split())
    beside_lightning = set(_python("import sys, lightning.pytorch; print(*sys.modules)").split())
    assert not {"torchvision", "matplotlib", "scipy", "pandas"} & (loaded - beside_lightning)


def test_the_learner_imports_where_jsonargparse_is_missing():
    code = "import sys; sys.modules['jsonargparse'] = None; import kd_lightning; print(kd_lightning.OfflineDistiller)"
    assert "OfflineDistiller" in _python(code)


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
