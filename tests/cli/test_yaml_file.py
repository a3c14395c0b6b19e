"""The reader of YAML files: plain values, the line of each setting, and one line for each fault, at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from kd_lightning import UsageError
from kd_lightning.__main__ import main
from kd_lightning.cli.configs import SHIPPED
from kd_lightning.cli.engine import build
from kd_lightning.cli.yaml_file import ValueLoader, YamlFaultError, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))

FAULTS = {  # what a file has, the line of the fault, and a part of the message
    "a tag that calls": ("x: 1\ny: !!python/object/apply:os.system [touch executed]\n", 2, "!!python/object/apply:os"),
    "a tag of one's own": ("x: !foo 1", 1, "has the tag !foo"),
    "a tagged mapping": ("x: !!set {a, b}", 1, "has the tag !!set"),
    "binary data": ("x: !!binary aGk=", 1, "has the tag !!binary"),
    "an explicit date": ("x: !!timestamp 2024-13-45", 1, "has the tag !!timestamp"),
    "a tag that does not fit": ("x: 1\ny: !!int five", 2, "'five' is not !!int"),
    "another one": ("x: !!bool perhaps", 1, "'perhaps' is not !!bool"),
    "aliases without end": (BOMB, 5, "more than 10,000 values"),
    "values without end": ("x:\n" + "- 1\n" * 20_000, 19_999, "more than 10,000 values"),
    "merge keys without end": (MERGES, 5, "more than 10,000 values"),
    "an alias of itself": ("x: 1\ny: &a [*a]", 2, "remove the alias of itself"),
    "a merge of itself": ("x: &a\n  <<: *a", 2, "not itself"),
    "an unknown alias": ("x: *a", 1, "undefined alias"),
    "a merged number": ("x: 1\n<<: 3", 2, "<< needs a mapping"),
    "a merged list of numbers": ("<<: [{a: 1}, 2]", 1, "<< needs a mapping"),
    "two merge keys": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", 4, "<< is set twice"),
    "a key that is set twice": ("x: 1\ny:\n  z: 1\n  z: 2", 4, "y.z is set twice, first in line 3"),
    "a number that is set twice": ("x: {1: a, 0x1: b}", 1, "x.1 is set twice"),
    "an empty key": ("x: 1\n~: 2", 2, "the key ~ is read as null"),
    "a key that is true": ("yes: 1", 1, "the key yes is read as true"),
    "a list as a key": ("x: 1\n? [a, b]\n: 1", 2, "a key is a list"),
    "a tagged key": ("!foo x: 1", 1, "a key is a list or a mapping, or has a tag"),
    "a number of 5,000 digits": ("x:\n  y: " + "9" * 5000, 2, "has 5,000 digits"),
    "a key of 5,000 digits": ("9" * 500 + ": 1", 1, "has 500 digits"),
    "a number above all": ("x: 1\ny: 1e400", 2, "the number 1e400 is too large"),
    "a number next to nothing": ("x: 1.5E-400", 1, "the number 1.5E-400 is too small"),
    "3,000 brackets": ("x: 1\ny: " + "[" * 3000, 2, "more than 50 levels"),
    "3,000 closed brackets": ("y: " + "[" * 3000 + "]" * 3000, 1, "more than 50 levels"),
    "1,000 indentations": ("".join(f"{' ' * i}a:\n" for i in range(1000)), 50, "more than 50 levels"),
    "two documents": ("x: 1\n---\ny: 2", 2, "expected a single document"),
    "a tab": ("x:\n\ty: 1", 2, "is not valid YAML"),
    "a null character": ("x: 1\ny: \0", 2, "special characters are not allowed"),
    "an unknown directive": ("%YAML 9.9\n---\nx: 1", 1, "is not valid YAML"),
}


@pytest.mark.parametrize(("text", "line", "says"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line_with_its_place(text: str, line: int, says: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    start = time.process_time()
    for args in (["fit", "--config=bad.yaml"], ["compare", "--config=bad.yaml"]):
        assert main(args) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"kd-lightning: bad.yaml:{line}: ")
        assert says in error
        assert len(error) < 250
    assert time.process_time() - start < 10
    assert [path.name for path in Path().iterdir()] == ["bad.yaml"]  # nothing was executed


def test_values_are_those_of_yaml_1_2_and_never_shared():
    text = """
a: {time: 1:30, octal: 010, date: 2024-02-30, float: 1e-3, int: 1_000, hex: 0x1F, sum: -5.5e+2, inf: .inf, no: no}
b: &b {x: 1, y: [1]}
c: {<<: *b, x: 2}
d: {x: 3, <<: [{x: 4, z: 5}, *b]}
e: {'<<': 3, 0: .5, 1.5: ''}
"""
    values, settings = parse_yaml(text.replace("no: no", "'no': no"))
    assert values == {
        "a": {
            "time": "1:30",
            "octal": "010",
            "date": "2024-02-30",
            "float": 0.001,
            "int": 1000,
            "hex": 31,
            "sum": -550.0,
            "inf": float("inf"),
            "no": False,
        },
        "b": {"x": 1, "y": [1]},
        "c": {"x": 2, "y": [1]},
        "d": {"x": 3, "y": [1], "z": 5},
        "e": {"<<": 3, 0: 0.5, 1.5: ""},
    }
    values["c"]["y"].append(2)
    assert values["b"]["y"] == [1]
    assert {(each.path, each.where) for each in settings} >= {(("c", "x"), "4"), (("c", "y"), "3"), (("d", "z"), "5")}


def test_shipped_files_are_read_as_pyyaml_reads_them():
    for name in ("response/kd", "self/byot", "self/sad", "compare/mnist", "graph/searched"):
        path = SHIPPED / f"{name}.yaml"
        assert read_yaml(path).values == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "mark.yaml").write_bytes("\ufeffx: ä\n".encode())
    assert read_yaml(tmp_path / "mark.yaml").values == {"x": "ä"}


def test_only_regular_files_of_a_sane_size_are_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("zero.yaml").symlink_to("/dev/zero")
    Path("large.yaml").write_text("# " + "x" * 2**20)
    Path("bytes.yaml").write_bytes(b"x: 1\n\xff")
    for name, says in {
        "pipe.yaml": "not a regular file",
        "zero.yaml": "not a regular file",
        "/dev/zero": "not a regular file",
        ".": "is a directory",
        "large.yaml": "more than 1,048,576 bytes",
        "bytes.yaml": "bytes.yaml:2: is not UTF-8",
        "x" * 5000: "File name too long",
        "x\0y": "no such file",
    }.items():
        for command in ("fit", "compare"):
            assert main([command, "--config", name]) == 2
            (error,) = capsys.readouterr().err.splitlines()
            assert says in error
            assert len(error) < 300
    with pytest.raises(UsageError, match=r"pipe\.yaml: is not a regular file"):
        read_yaml(Path("pipe.yaml"))


OPTIONS = {
    "too large": "1e400",
    "digits": "9" * 5000,
    "1:30": "1:30",
    "aliases": BOMB,
    "a tag": "!!python/name:os.system",
}


@pytest.mark.parametrize("value", OPTIONS.values(), ids=OPTIONS)
def test_options_are_read_as_files_are(value: str):
    with pytest.raises(UsageError, match="max_epochs") as refusal:
        build(["--config=response/kd.yaml", f"--trainer.max_epochs={value}"])
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


def test_a_fault_is_a_yaml_error_for_the_parser():
    with pytest.raises(yaml.YAMLError, match="line 1: "):
        yaml.load("x: !foo 1", ValueLoader)
    assert yaml.load("x: 1:30", ValueLoader) == {"x": "1:30"}
    assert YamlFaultError(3, "no").line == 3
