"""How far a comparison is: a line for each finished run, and a bar with the time that is left."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kd_lightning.compare.plan import Run
from kd_lightning.compare.worker import Done, Failed, Message, Underway

TRUST = 60.0
"""After so many seconds, what was seen of the speed counts as much as what was expected."""


class Display:
    """Hears of runs that are under way, and shows them while its `bar` is open.

    Args:
        console: Where.
        seconds: About how long each run takes.
        processes: How many go on side by side.
    """

    def __init__(self, console: Console, seconds: Mapping[Run, float], processes: int) -> None:
        self.seconds, self.processes, self.began = seconds, processes, perf_counter()
        self.fractions: dict[Run, float] = {}
        columns = "{task.fields[count]}", "{task.fields[left]} left · {task.fields[names]}"
        self.bar = Progress(TextColumn(columns[0]), BarColumn(30), TextColumn(columns[1]), console=console)
        self.task = self.bar.add_task("", total=sum(seconds.values()), count="", left=self._left(), names="")

    def hear(self, run: Run, message: Message) -> None:
        """Takes a message about a run."""
        self.fractions[run] = message.fraction if isinstance(message, Underway) else 1.0
        print_line = self.bar.console.print
        if isinstance(message, Done):
            accuracy, seconds = message.value["accuracy"], message.value["seconds"]
            print_line(
                f"{run.name}: {accuracy:.2%} in {seconds:.0f} s; {self._left()} left", markup=False, highlight=False
            )
        elif isinstance(message, Failed):
            print_line(f"{run.name}: failed: {message.reason}", style="red", markup=False, highlight=False)
        under_way = {run.name: fraction for run, fraction in self.fractions.items() if fraction < 1}
        self.bar.update(
            self.task,
            completed=self._done(),
            count=f"{len(self.fractions) - len(under_way)} of {len(self.seconds)} runs",
            left=self._left(),
            names=", ".join(f"{name} {fraction:.0%}" for name, fraction in under_way.items()),
        )

    def _done(self) -> float:
        """Seconds' worth of the expected work."""
        return sum(self.seconds[run] * fraction for run, fraction in self.fractions.items())

    def _left(self) -> str:
        done, elapsed = self._done(), perf_counter() - self.began
        speed = (done + TRUST * self.processes) / (elapsed + TRUST)
        return in_minutes((sum(self.seconds.values()) - done) / speed)


def in_minutes(seconds: float) -> str:
    """A length of time in words.

    Example:
        >>> in_minutes(40), in_minutes(400)
        ('40 s', '7 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
