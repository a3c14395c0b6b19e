"""Resident memory and processor time of each test: `--measure` lists the most expensive, `--max-memory` sets a bound.

Both count this worker. Processor time includes the processes that a test starts and waits for; memory does not.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

RELEASE_AFTER = 24
"""A test that lets so many MiB stay is followed by a release of memory."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """What one test took."""

    test: str
    seconds: float
    """Processor time of this process and of its finished children."""
    peak: int
    """The most memory that was resident while it ran, in MiB."""
    growth: int
    """How much more memory was resident after it than before it, in MiB."""


def add_options(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("measure", "memory and processor time of the tests")
    group.addoption("--measure", action="store_true", help="list the tests that took most memory and most time")
    group.addoption("--max-memory", type=int, metavar="MIB", help="fail if a worker had more memory resident at once")


def memory(key: str) -> int:
    """`VmRSS` or `VmHWM` of this process in MiB; 0 where the system does not tell."""
    if not STATUS.exists():
        return 0
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) // 1024


def processor_seconds() -> float:
    """Processor time of this process and of its finished children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


class Measure:
    """A pytest plugin: it measures each test in the process that runs it, and reports in the one that was started."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.costs: list[Cost] = []
        self.peaks: dict[str, int] = {}
        """The most memory that each worker had resident."""
        self.settled = memory("VmRSS")
        """What was resident after the last release."""

    def pytest_collection_finish(self) -> None:
        """Release what reading the tests took, and leave what stays out of later collections of garbage."""
        release()
        gc.freeze()
        self.settled = memory("VmRSS")

    def pytest_unconfigure(self) -> None:
        """Let what stayed be collected at the end; bindings in C++ report what is not."""
        gc.unfreeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        seconds, before, earlier = processor_seconds(), memory("VmRSS"), memory("VmHWM")
        reset_peak()
        result = yield
        peak = memory("VmHWM")
        self.costs.append(Cost(item.nodeid, processor_seconds() - seconds, peak, memory("VmRSS") - before))
        self._note_peak("", max(peak, earlier))
        if memory("VmRSS") > self.settled + RELEASE_AFTER:
            release()
            self.settled = memory("VmRSS")
        return result

    def _note_peak(self, worker: str, peak: int) -> None:
        self.peaks[worker] = max(peak, self.peaks.get(worker, 0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._note_peak("", memory("VmHWM"))
        if (output := getattr(self.config, "workeroutput", None)) is not None:  # a worker of pytest-xdist
            output["costs"] = [tuple(cost) for cost in self.costs]
            output["peak"] = self.peaks[""]
        elif self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})  # none where the worker crashed
        self.costs += [Cost(*cost) for cost in output.get("costs", [])]
        self._note_peak(node.gateway.id, output.get("peak", 0))

    def over(self) -> list[str]:
        """One line for each process that had more memory resident than `--max-memory` allows."""
        bound = self.config.getoption("max_memory")
        return [
            f"{worker or 'this process'} had {peak} MiB resident: --max-memory allows {bound}"
            for worker, peak in self.peaks.items()
            if bound is not None and peak > bound
        ]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.getoption("measure"):
            terminalreporter.section("memory and processor time")
            for line in report(self.costs, self.peaks):
                terminalreporter.write_line(line)
        for line in self.over():
            terminalreporter.write_line(f"ERROR: {line}", red=True)


def reset_peak() -> None:
    """Let `VmHWM` begin anew from what is resident now."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def release() -> None:
    """Free what only cycles hold, such as trainers, and hand free memory back to the system, where that is Linux."""
    gc.collect()
    if STATUS.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


def report(costs: list[Cost], peaks: dict[str, int], most: int = 10) -> list[str]:
    """The lines of `--measure`: the peak of each worker, and the most expensive tests and files."""
    lines = [f"{worker or 'this process'}: at most {peak} MiB resident" for worker, peak in sorted(peaks.items())]
    lines += ["", f"tests with the {most} highest peaks (peak, growth):"]
    by_peak = sorted(costs, key=lambda cost: -cost.peak)[:most]
    lines += [f"{cost.peak:6d} MiB {cost.growth:6d} MiB  {cost.test}" for cost in by_peak]
    lines += ["", f"tests after which {most} times the most memory stayed resident (growth, peak):"]
    by_growth = sorted(costs, key=lambda cost: -cost.growth)[:most]
    lines += [f"{cost.growth:6d} MiB {cost.peak:6d} MiB  {cost.test}" for cost in by_growth]
    files: dict[str, float] = {}
    for cost in costs:
        file = cost.test.partition("::")[0]
        files[file] = files.get(file, 0.0) + cost.seconds
    for title, seconds in (("tests", {cost.test: cost.seconds for cost in costs}), ("files", files)):
        lines += ["", f"{title} that took the most processor time, of {sum(files.values()):.0f} s in all:"]
        lines += [f"{spent:8.1f} s  {name}" for name, spent in sorted(seconds.items(), key=lambda s: -s[1])[: 3 * most]]
    return lines
