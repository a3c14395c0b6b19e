"""The command line of the faults: see `python -m benchmarks.faults --help`."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.faults.families import FAMILIES
from benchmarks.faults.kinds import faults
from benchmarks.faults.ranks import FAMILIES as IN_TWO, pair_truth, rank_faults, try_rank_fault
from benchmarks.faults.report import write_report
from benchmarks.faults.trial import Verdict, as_json, truth_of, try_fault
from kd_lightning.data import MNIST

DOCUMENT = Path(__file__).parents[2] / "docs/reliability.md"


def main(args: list[str] | None = None) -> int:
    """Inject the faults, print each with a problem, and write the results; returns 1 if there is a problem."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description="Inject faults into small runs, resume each, and compare it with the undisturbed run.",
    )
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, metavar="NAME")
    parser.add_argument("--kinds", nargs="+", help="the kinds of faults; all by default", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="chooses the random moments")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="where runs and results are kept")
    parser.add_argument("--report", action="store_true", help="write the table into docs/reliability.md")
    options = parser.parse_args(args)
    if options.report and (options.kinds or set(options.families) != FAMILIES.keys()):
        parser.error("--report is for all faults: leave out --families and --kinds")
    prepare()
    verdicts = try_all(options.families, options.kinds, options.seed, options.folder.resolve())
    (options.folder / "results.json").write_text(as_json(verdicts))
    bad = [verdict for verdict in verdicts if verdict.problems]
    print(f"{len(verdicts)} faults, {len(bad)} with a problem")
    if options.report:
        write_report(DOCUMENT, verdicts)
    return 1 if bad else 0


def prepare() -> None:
    """Read the digits, and leave out what Lightning says of devices and small runs: forked processes inherit both."""
    MNIST().train()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def try_all(families: list[str], kinds: list[str] | None, seed: int, folder: Path) -> list[Verdict]:
    """Inject the faults of the given kinds into the runs of the given families."""
    folder.mkdir(parents=True, exist_ok=True)
    verdicts: list[Verdict] = []

    def tell(verdict: Verdict) -> None:
        verdicts.append(verdict)
        for problem in verdict.problems:
            print(f"{verdict.family}: {verdict.kind} ({verdict.detail}): {problem}", flush=True)

    for name in families:
        truth = truth_of(name, folder)
        for fault in faults(name, seed):
            if not kinds or fault.kind in kinds:
                tell(try_fault(name, fault, truth, folder))
    for name in families:
        if name in IN_TWO and (not kinds or "one of two processes" in kinds):
            truth = pair_truth(name, folder)
            for fault in rank_faults():
                tell(try_rank_fault(name, fault, truth, folder))
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
