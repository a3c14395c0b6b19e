"""The progress of a comparison: a line for each finished run, and a bar with the remaining time.

Without a terminal, which shows no bar, a run has a line when it starts as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from rich import progress as bars
from rich.console import Console

from kd_lightning.compare.measure.measures import ACCURACY, measure_of
from kd_lightning.compare.messages import Done, Failed, Message, Progress
from kd_lightning.compare.plan.variants import Run

TRUST = 60.0
"""Seconds after which the measured speed counts as much as the estimated one."""


class Display:
    """Follows the messages about runs, and shows them while its `bar` is open.

    Args:
        console: The console to print to.
        seconds: The estimated duration of each run.
        processes: The number of runs in parallel.
    """

    def __init__(self, console: Console, seconds: Mapping[Run, float], processes: int) -> None:
        self.seconds, self.processes, self.began = seconds, processes, perf_counter()
        self.fractions: dict[Run, float] = {}
        self.shows_starts = not console.is_terminal
        columns = "{task.fields[count]}", "{task.fields[left]} left · {task.fields[names]}"
        self.bar = bars.Progress(
            bars.TextColumn(columns[0]), bars.BarColumn(30), bars.TextColumn(columns[1]), console=console
        )
        self.task = self.bar.add_task("", total=sum(seconds.values()), count="", left=self._left(), names="")

    def on_message(self, run: Run, message: Message) -> None:
        """Show a message about a run."""
        is_known = run in self.fractions
        self.fractions[run] = message.fraction if isinstance(message, Progress) else 1.0
        print_line = self.bar.console.print
        if isinstance(message, Done):
            figure, seconds = monitored(message.value), message.value["seconds"]
            print_line(f"{run.name}: {figure} in {seconds:.0f} s; {self._left()} left", markup=False, highlight=False)
        elif isinstance(message, Failed):
            print_line(f"{run.name}: failed: {message.reason}", style="red", markup=False, highlight=False)
        elif message.fraction == 0 and is_known:
            print_line(f"{run.name}: its process died: started again", markup=False, highlight=False)
        elif message.fraction == 0 and self.shows_starts:
            print_line(f"{run.name}: started", markup=False, highlight=False)
        running = {run.name: fraction for run, fraction in self.fractions.items() if fraction < 1}
        self.bar.update(
            self.task,
            completed=self._done(),
            count=f"{len(self.fractions) - len(running)} of {len(self.seconds)} runs",
            left=self._left(),
            names=", ".join(f"{name} {fraction:.0%}" for name, fraction in running.items()),
        )

    def _done(self) -> float:
        """The finished part of the estimated work, in seconds."""
        return sum(self.seconds[run] * fraction for run, fraction in self.fractions.items())

    def _left(self) -> str:
        done, elapsed = self._done(), perf_counter() - self.began
        speed = (done + TRUST * self.processes) / (elapsed + TRUST)
        return in_minutes((sum(self.seconds.values()) - done) / speed)


def monitored(result: Mapping[str, object]) -> str:
    """The monitored number of a result, in words.

    Example:
        >>> monitored({"accuracy": 0.97}), monitored({"metrics": {"mse": 0.1234567}, "monitor": "mse"})
        ('97.00%', 'mse 0.1235')
    """
    measure = measure_of(str(result.get("monitor", ACCURACY.key)))
    value = measure.value(result)
    text = "-" if value is None else measure.text(value)
    return f"{text}%" if measure == ACCURACY else f"{measure.heading} {text}"


def in_minutes(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> in_minutes(40), in_minutes(400)
        ('40 s', '7 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
