"""A dask cluster that a YAML file describes, such as jobs of SLURM through dask-jobqueue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from time import sleep
from typing import Any

import dask

from kd_lightning.cli.yaml_file import read_yaml
from kd_lightning.compare.run.dask_engine import silence
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import one_line
from kd_lightning.core.lookup import suggestion

KEYS = ("class_path", "init_args", "jobs")
WORKER = ["--nthreads", "1", "--memory-limit", "0"]
"""Options of a worker: a run has a process to itself, and dask ends none that needs more than its share."""
PROLOGUE = ["export DASK_DISTRIBUTED__WORKER__DAEMON=False"]
"""Lines of a job's script: a daemonic process cannot have the workers of a loader."""
LOGS = "jobs"
"""The directory of the jobs' own output, in the root."""


@contextmanager
def job_cluster(path: Path, root: Path, say: Callable[[str], None]) -> Generator[tuple[str, int]]:
    """Start the cluster of a file, and close it with the block.

    The file has the keys ``class_path`` (a class of dask_jobqueue, such as ``SLURMCluster``, or the dotted name of
    another dask cluster), ``init_args`` (its arguments) and ``jobs`` (the number of its jobs, each with one run).

    Args:
        path: The file.
        root: The directory of the comparison.
        say: Called with a line for the user.

    Yields:
        The address of the scheduler, and the number of jobs.

    Raises:
        UsageError: The file is wrong, or the cluster cannot be started.
    """
    silence()
    content = read_yaml(path).values
    for key in content:
        if key not in KEYS:
            raise UsageError(f"{path}: there is no such key as {key!r}{suggestion(key, KEYS)}")
    class_path, arguments, jobs = content.get("class_path"), content.get("init_args") or {}, content.get("jobs", 1)
    if not isinstance(class_path, str):
        raise UsageError(f"{path}: class_path is {class_path!r}: name a cluster, such as SLURMCluster")
    if not isinstance(jobs, int) or jobs < 1:
        raise UsageError(f"{path}: jobs is {jobs!r} and not a whole number above 0")
    if not isinstance(arguments, dict):
        raise UsageError(f"{path}: init_args is {arguments!r} and not a mapping of arguments")
    cluster_class = _cluster_class(path, class_path)
    try:
        cluster = cluster_class(**_with_defaults(cluster_class, arguments, root))
    except Exception as error:
        raise UsageError(f"{path}: {class_path} cannot be started: {one_line(error)}") from error
    with _errors_of_jobs() as errors:
        try:
            cluster.scale(jobs)
            say(f"waiting for a job of {class_path}")
            while not cluster.scheduler_info["workers"]:
                if errors:
                    raise UsageError(f"{path}: {class_path} cannot start its jobs: {one_line(errors[0])}")
                sleep(0.1)
            yield cluster.scheduler_address, jobs
        finally:
            with suppress(Exception):  # where the queue's commands fail, its jobs end with their scheduler
                cluster.close()


@contextmanager
def _errors_of_jobs() -> Generator[list[BaseException]]:
    """Collect the errors of a cluster's background work, which dask only logs."""
    errors: list[BaseException] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            errors.append(record.exc_info[1])
        return False

    logger = logging.getLogger("tornado.application")
    logger.addFilter(collect)
    try:
        yield errors
    finally:
        logger.removeFilter(collect)


def _cluster_class(path: Path, class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    dask.config.PATH = str(path)  # a file: else dask_jobqueue would write one into the home directory
    try:
        found = import_module(module or "dask_jobqueue")
    except ModuleNotFoundError as error:
        remedy = "pip install 'kd-lightning[cluster]'" if error.name == "dask_jobqueue" else "install it"
        raise UsageError(f"{path}: class_path {class_path!r} needs {error.name}: {remedy}") from error
    if not hasattr(found, name):
        there = [each for each in vars(found) if each.endswith("Cluster")]
        raise UsageError(f"{path}: there is no {class_path!r}{suggestion(name, there)}")
    return getattr(found, name)


def _with_defaults(cluster_class: Any, arguments: dict[str, Any], root: Path) -> dict[str, Any]:
    """Add to the arguments of a job queue what every worker of a comparison needs."""
    if not hasattr(cluster_class, "job_cls"):  # another dask cluster
        return arguments
    return (
        {"processes": 1, "log_directory": str(root / LOGS), "shared_temp_directory": str(root)}
        | arguments
        | {
            "worker_extra_args": [*WORKER, *arguments.get("worker_extra_args", [])],
            "job_script_prologue": [*PROLOGUE, *arguments.get("job_script_prologue", [])],
        }
    )
