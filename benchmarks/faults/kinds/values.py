"""Values that are not finite, in training and in a validation."""

from __future__ import annotations

from benchmarks.faults.moments import BATCH
from benchmarks.faults.process import Run
from benchmarks.faults.trial import Fault, Truth
from benchmarks.faults.values import PLACES, Poison


def value_faults() -> list[Fault]:
    """List one of each place."""

    def fault(place: str) -> Fault:
        def attach(run: Run, truth: Truth) -> None:
            run.add(Poison(place, BATCH, run.student, run.other, run.marker.touch))

        return Fault("not finite", place, attach, says="not finite")

    return [fault(place) for place in PLACES]
