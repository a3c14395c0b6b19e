"""``kd-lightning doctor``: versions, devices, caches and extras, as they belong into an issue. Uses no network."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import kd_lightning
from kd_lightning.cli.config_needs import needs_of
from kd_lightning.cli.configs import find_config, merge
from kd_lightning.cli.errors import Parser
from kd_lightning.cli.extras import LOGGERS, missing_packages, version_of
from kd_lightning.cli.yaml_file import read_yaml
from kd_lightning.core.packaged import PREFIX, packaged_names, packaged_path

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy", "safetensors", "tensorboard")
"""The packages whose versions matter to an error."""
TABLE = f"teacher-{'?' * 12}-{'?' * 16}.safetensors"
"""The files of a `TeacherCache`."""


def main(args: Sequence[str]) -> int:
    """Print a report of this machine, and with ``--config`` what a configuration needs.

    Args:
        args: The arguments after ``kd-lightning doctor``.

    Returns:
        The exit code: 0; 1 where the configuration lacks something.
    """
    parser = Parser(
        "kd-lightning doctor",
        description="Report versions, devices, the precision that pays, caches and extras: the head of an issue.",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="list the files and packages that it needs"
    )
    files: list[str] = parser.parse_args(args).config
    config: dict[str, object] = {}
    for file in files:
        config = merge(config, read_yaml(find_config(file)).values)
    _print("versions", versions())
    _print("devices", devices())
    _print("cached", caches(Path("runs")))
    _print("extras", extras())
    if not files:
        return 0
    needs = needs_of(config)
    _print(f"needs of {' '.join(files)}", (f"{'ok' if need.is_there else 'MISSING':8}{need.line}" for need in needs))
    return 0 if all(need.is_there for need in needs) else 1


def versions() -> Iterator[str]:
    """Yield a line for this package, Python and each package that matters."""
    place = _short(Path(kd_lightning.__file__).parent)
    yield f"kd-lightning {kd_lightning.__version__} ({place})"
    yield f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield f"{package} {version_of(package) or 'MISSING'}"


def devices() -> Iterator[str]:
    """Yield a line for each device, with the precision that makes a large matrix product faster there."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = f"{cores} cores, {torch.get_num_threads()} of them used by torch"
    yield f"cpu: {used}, {capability}; {_advice(torch.device('cpu'))}"
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        memory = about.total_memory / 2**30
        advice = _advice(torch.device("cuda", index))
        yield f"cuda:{index}: {about.name}, {memory:.0f} GiB, capability {about.major}.{about.minor}; {advice}"
    if torch.backends.mps.is_available():
        yield f"mps: {_advice(torch.device('mps'))}"


def caches(folder: Path) -> Iterator[str]:
    """Yield a line for the packaged weights, and for each directory of cached teacher outputs below a folder."""
    names = [name.removeprefix(PREFIX) for name in packaged_names()]
    size = sum(packaged_path(PREFIX + name).stat().st_size for name in names)
    yield f"{PREFIX}{', '.join(names)}: {size / 2**20:.1f} MiB in {_short(packaged_path(PREFIX + names[0]).parent)}"
    found: dict[Path, list[int]] = {}
    for path in sorted(folder.rglob(TABLE)) if folder.is_dir() else ():
        found.setdefault(path.parent, []).append(path.stat().st_size)
    for place, sizes in found.items():
        yield f"{place}: teacher outputs, {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"
    if not found:
        yield f"no teacher outputs below {folder}"


def extras() -> Iterator[str]:
    """Yield a line for each extra and logger, with the command that installs a missing one."""
    for name, missing in missing_packages().items():
        yield f"{name}: " + (f"missing {', '.join(missing)}: pip install 'kd-lightning[{name}]'" if missing else "ok")
    for package in dict.fromkeys(name for key, name in LOGGERS.items() if key.islower() and name):
        found = version_of(package)
        yield f"{package}: {found}" if found else f"{package}: missing, for --log {package}: pip install {package}"


def _advice(device: object) -> str:
    from kd_lightning.cli.precision_gain import precision_gains

    gains = precision_gains(device)  # pyright: ignore[reportArgumentType]
    text = ", ".join(f"{name} {gain:.1f} times as fast as float32" for name, gain in gains.items())
    best = max(gains, key=gains.__getitem__)
    if gains[best] < 1.2:
        return f"{text}: stay with float32"
    return f"{text}: add --config configs/parts/{best}.yaml"


def _print(title: str, lines: Iterable[str]) -> None:
    print(f"{title}\n" + "".join(f"  {line}\n" for line in lines), end="", flush=True)


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if home != "/" else str(path)
