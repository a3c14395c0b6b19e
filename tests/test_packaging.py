"""The wheel and the source distribution, built without a network, hold what a user needs and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import kd_lightning

pytestmark = pytest.mark.xdist_group("packaging")  # built once

ROOT = Path(__file__).parents[1]
LICENCES = ["LICENSE", "kd_lightning/data/files/mnist/README.md", "kd_lightning/data/files/speech/README.md"]
PUBLIC = ["kd_lightning", *(f"kd_lightning.{part}" for part in ("losses", "schemes", "callbacks", "networks", "data"))]


def build(source: Path, target: Path, *kinds: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target), *kinds],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )


def read(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> dict[str, bytes]:
    """The wheel's files by name."""
    (path,) = dist.glob("*.whl")
    return read(path)


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    (text,) = [content for name, content in wheel.items() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(text.decode())


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the wheel is unpacked, as an installer does."""
    folder = tmp_path_factory.mktemp("site")
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def outside(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder that is not the checkout, where the wheel is installed."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_holds_the_package_the_configurations_and_the_data(wheel):
    expected = {
        f"kd_lightning/{kind}{path.relative_to(ROOT / folder)}": path.read_bytes()
        for folder, kind in (("kd_lightning", ""), ("configs", "configs/"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name: content for name, content in wheel.items() if ".dist-info/" not in name} == expected
    assert "kd_lightning/py.typed" in wheel
    assert "kd_lightning/configs/response/kd.yaml" in wheel
    assert len([name for name in wheel if name.endswith("ubyte.gz")]) == 4
    assert len([name for name in wheel if name.endswith(".safetensors")]) == 4


def test_the_licences_cover_the_packaged_data(wheel, metadata):
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-SA-3.0"
    assert sorted(metadata.get_all("License-File")) == LICENCES
    packaged = {name.partition("licenses/")[2]: text for name, text in wheel.items() if ".dist-info/licenses/" in name}
    assert packaged == {name: (ROOT / name).read_bytes() for name in LICENCES}
    data = {Path(name).parent for name in wheel if name.startswith("kd_lightning/data/files/")}
    assert all(f"{folder}/README.md" in packaged for folder in data), "each folder of data says its licence"


def test_the_metadata_is_that_of_this_version(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("kd-lightning", kd_lightning.__version__)
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert not [line for line in classifiers if line.startswith("License ::")], "the SPDX expression says it"


def test_the_source_distribution_builds_the_same_wheel(dist, wheel, tmp_path):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert (source / "tests/test_packaging.py").is_file()
    assert (source / "benchmarks").is_dir()
    build(source, tmp_path / "again", "-t", "wheel")
    (again,) = (tmp_path / "again").glob("*.whl")
    assert read(again) == wheel


def test_the_installed_command_finds_its_configurations(site, tmp_path):
    run = outside(site, tmp_path, "-m", "kd_lightning", "show", "kd")
    assert run.returncode == 0, run.stderr
    assert run.stdout == (ROOT / "configs/response/kd.yaml").read_text()


def diagnostics(site: Path, folder: Path, program: str) -> list[tuple[int, Any]]:
    """Line and rule of each error that pyright's strict mode finds in a user's program."""
    (folder / "program.py").write_text(f"# pyright: strict, reportUnusedImport=false\n{program}")
    run = outside(site, folder, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "program.py")
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return [(found["range"]["start"]["line"], found.get("rule")) for found in report["generalDiagnostics"]]


def test_a_type_checker_knows_the_type_of_every_public_name(site, tmp_path):
    names = {module: import_module(module).__all__ for module in PUBLIC}
    program = "".join(f"from {module} import {name}\n" for module, public in names.items() for name in public)
    assert diagnostics(site, tmp_path, program) == []


def test_a_type_checker_finds_a_users_mistakes(site, tmp_path):
    program = (
        "from kd_lightning import freeze\n"
        "from kd_lightning.losses import KDLoss\n"
        "KDLoss(temperature=4.0)\n"
        "KDLoss(temperature='warm')\n"
        "freeze(3)\n"
    )
    assert diagnostics(site, tmp_path, program) == [(4, "reportArgumentType"), (5, "reportArgumentType")]
