"""Every command shows its own help, and a class of the working directory is found behind everything installed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kd_lightning.__main__ import COMMANDS, HELP, HOMES, main
from kd_lightning.core.working_directory import import_from_working_directory

PROGRAM = "import sys; from kd_lightning.__main__ import main; sys.argv = ['kd-lightning', {}]; sys.exit(main())"


@pytest.mark.parametrize("command", HOMES)
def test_a_command_shows_its_own_help(command, capsys):
    with suppress(SystemExit):  # argparse's way
        assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: kd-lightning {command}")
    assert printed.count("\n") < 40


def test_the_help_lists_every_command():
    listed = {line.split()[0] for line in HELP.splitlines() if line.startswith("  ") and line[2] not in " -"}
    assert {*COMMANDS} <= listed


def run_in(folder: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the console script, whose first place of modules is that of the script, in a directory."""
    isolated = [sys.executable, "-P", "-c", PROGRAM.format(arguments)]
    return subprocess.run(isolated, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_working_directory_comes_last_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["installed"])
    monkeypatch.chdir(tmp_path)
    import_from_working_directory()
    import_from_working_directory(tmp_path)
    assert sys.path == ["installed", str(tmp_path)]


@pytest.mark.slow
def test_a_class_beside_the_file_is_found_and_shadows_nothing(tmp_path):
    (tmp_path / "my_networks.py").write_text("import torch\n\n\nclass Twice(torch.nn.Flatten):\n    pass\n")
    for installed in ("random", "torch", "yaml", "lightning"):
        (tmp_path / f"{installed}.py").write_text("raise SystemExit('shadowed')\n")
    named = "--model.init_args.student={class_path: my_networks.Twice}"
    done = run_in(tmp_path, f"'layers', '--config=mnist/student.yaml', '--trainer.accelerator=cpu', '{named}'")
    assert done.returncode == 0, done.stderr
    assert "student: Twice" in done.stdout
    assert "64 x 2352" in done.stdout
