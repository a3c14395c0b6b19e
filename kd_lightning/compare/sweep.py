"""``kd-lightning sweep``: chooses the values of a grid on validation data, never on test data."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

from kd_lightning.cli.configs import find_config
from kd_lightning.cli.errors import Parser
from kd_lightning.cli.extras import missing_module
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Plan, Variant
from kd_lightning.core.directory_lock import DirectoryLock
from kd_lightning.core.errors import UsageError
from kd_lightning.core.lookup import suggestion

JOURNAL = "sweep.journal"


def main(args: list[str]) -> int:
    """Train points of a grid and print them, the best on validation data first.

    Args:
        args: The arguments after ``kd-lightning sweep``.

    Returns:
        0.

    Raises:
        UsageError: The arguments are wrong, the file has no such grid, optuna is missing, or a point cannot be trained.
    """
    parser = Parser(
        prog="kd-lightning sweep",
        description="Chooses the values of a compare file's grid on the validation data, under all seeds of its group: "
        "with as many trials as there are points every one, with fewer those that optuna's TPE proposes. The same "
        "command continues an interrupted sweep.",
    )
    parser.add_argument("--config", required=True, help="the compare file, of which a variant has a grid")
    parser.add_argument("--variant", help="group/variant with the grid; not needed where there is one grid alone")
    parser.add_argument("--trials", type=int, help="points to train; all of the grid if not given")
    parser.add_argument("--root", type=Path, help="directory of the runs (runs/sweep/<name of the file>)")
    options = parser.parse_args(args)
    path = find_config(options.config)
    points = _points(read_plan(path), options.variant)
    trials = len(points) if options.trials is None else options.trials
    if trials < 1:
        raise UsageError(f"sweep: --trials {trials}: at least one is needed")
    root = options.root or Path("runs/sweep") / path.stem
    with DirectoryLock(root, "a sweep", "name another --root"):
        best, value = _sweep(points, trials, root)
    print(f"Best on validation data: {best.title} ({value:.4g}); no test data were used")
    for setting, text in _texts(best).items():
        print(f"  --{setting} {text}")
    return 0


def _sweep(points: list[Variant], trials: int, root: Path) -> tuple[Variant, float]:
    """Train points until there are as many as trials; the best one and its score."""
    try:
        import optuna  # an extra
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UsageError(f"sweep: {missing_module(error)}") from None
    from kd_lightning.compare.run.validation import Validation  # it loads torch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first, by_texts = points[0], {json.dumps(_texts(point), sort_keys=True): point for point in points}
    space = {name: list(dict.fromkeys(_texts(point)[name] for point in points)) for name in first.values}
    samplers, backend = optuna.samplers, JournalFileBackend(str(root / JOURNAL))
    validation = Validation(root)
    monitor = validation.monitor(first)
    study = optuna.create_study(
        study_name=str(first.grid),
        storage=optuna.storages.JournalStorage(backend),
        sampler=samplers.GridSampler(space, seed=0) if trials >= len(points) else samplers.TPESampler(seed=0),
        direction="minimize" if monitor.mode == "min" else "maximize",
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> float:
        chosen = {name: trial.suggest_categorical(name, texts) for name, texts in space.items()}
        point = by_texts[json.dumps(chosen, sort_keys=True)]
        scores = [validation.score(run) for run in point.runs]
        print(f"{point.path}: {monitor.name} {fmean(scores):.4g} over {len(scores)} seeds", flush=True)
        return fmean(scores)

    finished = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if trials > len(finished):
        study.optimize(objective, n_trials=trials - len(finished))
    return by_texts[json.dumps(study.best_params, sort_keys=True)], study.best_value


def _points(plan: Plan, wanted: str | None) -> list[Variant]:
    grids: dict[str, list[Variant]] = {}
    for variant in plan.variants:
        if variant.grid is not None:
            grids.setdefault(variant.grid, []).append(variant)
    if not grids:
        raise UsageError("sweep: no variant of the file has a grid: add `grid:` with dotted settings and their values")
    if wanted is None and len(grids) > 1:
        raise UsageError(f"sweep: the file has {len(grids)} grids: choose one with --variant{suggestion('', grids)}")
    name = next(iter(grids)) if wanted is None else wanted
    if name not in grids:
        raise UsageError(f"sweep: --variant {name}: has no grid{suggestion(name, grids)}")
    return grids[name]


def _texts(point: Variant) -> dict[str, str]:
    """The values of a point as text: optuna stores plain values alone, and a value may be a class."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in point.values.items()}
