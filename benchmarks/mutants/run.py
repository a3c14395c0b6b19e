"""Each mutant meets the tests that call its function, in a process forked from one that has collected them."""

from __future__ import annotations

import gc
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

from benchmarks.mutants.changes import Mutant

Function = tuple[str, str]
"""File and qualified name."""

SLOWER = 10.0
"""A mutant's tests may take so many times as long as without it, and 10 s more."""


@dataclass(eq=False)  # pytest keeps plugins in a set
class Mutations:
    """A pytest plugin that runs no test by itself: it tries every mutant on the tests that were collected.

    Args:
        mutants: Those to try.
        root: The directory of the project.
        workers: Processes at a time.
        tell: Called with each mutant and what became of it: ``killed``, ``survived``, or ``not called`` by any test.
    """

    mutants: list[Mutant]
    root: Path
    workers: int
    tell: Callable[[Mutant, str], None]
    callers: dict[Function, dict[int, float]] = field(default_factory=dict)
    """By function, the tests that call it, by number, and their seconds."""
    _has_failed: bool = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants."""
        wanted = {(str(self.root / mutant.path), mutant.function) for mutant in self.mutants}
        gc.freeze()
        self.callers = self._record(session, wanted)
        running: dict[int, tuple[Mutant, float]] = {}
        left = self.mutants[::-1]
        while left or running:
            while left and len(running) < self.workers:
                mutant = left.pop()
                tests = self.callers.get((str(self.root / mutant.path), mutant.function), {})
                if not tests:
                    self.tell(mutant, "not called")
                    continue
                process = os.fork()
                if process == 0:
                    os.setpgid(0, 0)
                    _leave(lambda mutant=mutant, tests=tests: self._try(session, mutant, tests))
                running[process] = mutant, time.monotonic() + SLOWER * sum(tests.values()) + 10
            self._reap(running)
        return True

    def _reap(self, running: dict[int, tuple[Mutant, float]]) -> None:
        for process, (mutant, deadline) in [*running.items()]:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended == 0 and time.monotonic() > deadline:  # an endless loop is noticed, too
                os.killpg(process, signal.SIGKILL)
                ended, status = os.waitpid(process, 0)
            if ended:
                del running[process]
                self.tell(mutant, "survived" if status == 0 else "killed")
        time.sleep(0.005)

    def _try(self, session: pytest.Session, mutant: Mutant, tests: dict[int, float]) -> int:
        """Run the tests of a mutant, the fastest first; 1 as soon as one fails."""
        set_code(mutant, self.root)
        order = sorted(tests, key=tests.__getitem__)
        for number, following in zip(order, [*order[1:], None], strict=True):
            if not self._passes(session, number, following):
                return 1
        return 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notice a failure."""
        self._has_failed |= report.failed

    def _passes(self, session: pytest.Session, number: int, following: int | None) -> bool:
        self._has_failed = False
        item, after = session.items[number], None if following is None else session.items[following]
        item.ihook.pytest_runtest_protocol(item=item, nextitem=after)  # with the test's own filters of warnings
        return not self._has_failed

    def _record(self, session: pytest.Session, wanted: set[Function]) -> dict[Function, dict[int, float]]:
        """Run all tests once, in a process of their own, and find which functions they call."""
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            _leave(lambda: self._send(session, wanted, write))
        os.close(write)
        with os.fdopen(read) as stream:
            rows = json.load(stream)
        os.wait()
        return {(path, name): {int(i): s for i, s in tests.items()} for path, name, tests in rows}

    def _send(self, session: pytest.Session, wanted: set[Function], write: int) -> int:
        calls: dict[Function, dict[int, float]] = {}
        for number, item in enumerate(session.items):
            seen: set[CodeType] = set()

            def look(frame: FrameType, event: str, argument: Any, seen: set[CodeType] = seen) -> None:
                if event == "call":
                    seen.add(frame.f_code)

            start = time.perf_counter()
            sys.setprofile(look)
            passed = self._passes(session, number, number + 1 if number + 1 < len(session.items) else None)
            sys.setprofile(None)
            if not passed:
                print(f"left out, for it fails without a mutant: {item.nodeid}", file=sys.stderr)
                continue
            for code in seen:
                if (function := (code.co_filename, code.co_qualname)) in wanted:
                    calls.setdefault(function, {})[number] = time.perf_counter() - start
        with os.fdopen(write, "w") as stream:
            json.dump([[*function, tests] for function, tests in calls.items()], stream)
        return 0


def set_code(mutant: Mutant, root: Path) -> None:
    """Give a function the code of its mutant, wherever the function is used."""
    found: Any = import_module(".".join(mutant.path.with_suffix("").parts).removesuffix(".__init__"))
    for part in mutant.function.split("."):
        found = inspect.getattr_static(found, part)
    for function in functions_of(found):
        if function.__code__.co_filename == str(root / mutant.path):
            function.__code__ = mutant.code


def functions_of(attribute: Any) -> Iterator[FunctionType]:
    """Yield the functions behind an attribute: of a property, a static or class method, or a decorated function."""
    if isinstance(attribute, property):
        yield from functions_of(attribute.fget)
    elif isinstance(attribute, staticmethod | classmethod):
        yield from functions_of(attribute.__func__)
    elif isinstance(attribute, FunctionType):
        yield inspect.unwrap(attribute)


def _leave(work: Callable[[], int]) -> None:
    """End a forked process with the exit code of its work, without what its parent would do at its end."""
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
