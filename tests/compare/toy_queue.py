"""A queue of jobs as dask-jobqueue has them: each is a shell script that runs at once on this machine."""

from __future__ import annotations

import sys
from typing import Any

from dask_jobqueue.core import Job, JobQueueCluster

SUBMIT = (
    "import subprocess, sys; "
    "print(-subprocess.Popen(['sh', sys.argv[1]], stdout=-3, stderr=-3, start_new_session=True).pid)"
)


class ShellJob(Job):
    submit_command = f'{sys.executable} -c "{SUBMIT}"'
    cancel_command = "kill --"
    job_id_regexp = r"(?P<job_id>-\d+)"
    config_name = "local"

    def __init__(self, scheduler: Any = None, name: Any = None, config_name: Any = None, **options: Any) -> None:
        super().__init__(scheduler=scheduler, name=name, config_name=config_name, shebang="#!/bin/sh", **options)
        self.job_header = ""


class ShellCluster(JobQueueCluster):
    job_cls = ShellJob
