"""What no load of the machine moves: Python calls a step, and peak memory. Times are for `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
import pytest
import torch

from benchmarks.calls import calls_a_step, peak_memory
from benchmarks.speed import BUSY, CACHED, FUSED, LIGHTNINGS_LOOP
from kd_lightning.speed.fast_loop.support import TESTED_LIGHTNING

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or not torch.__version__.startswith("2.15."),
    reason="another Python or torch makes other calls: the limits are for those of requirements.lock on Python 3.11",
)


@pytest.mark.parametrize(
    ("config", "more", "limit"),
    [
        pytest.param("student", [], 320, marks=pytest.mark.slow),
        pytest.param("student", [FUSED], 295, marks=pytest.mark.slow),
        pytest.param("distilled", [CACHED, FUSED], 320, marks=pytest.mark.slow),  # the busy one makes these calls too
        ("distilled", [CACHED, FUSED, *BUSY], 420),
    ],
    ids=["student", "fused", "distilled", "busy"],
)
def test_a_step_makes_few_python_calls(config, more, limit, teacher_checkpoint: Path):
    assert lightning.__version__ in TESTED_LIGHTNING  # every step of another release is Lightning's own
    few = "--data.init_args.train_size=16000"  # for the teacher to be asked about; the steps are those of more
    assert calls_a_step(config, teacher_checkpoint, *more, few) <= limit


@pytest.mark.slow  # only the limits above are promised
def test_lightnings_own_loop_is_seen_to_make_more(teacher_checkpoint: Path):
    assert calls_a_step("student", teacher_checkpoint, LIGHTNINGS_LOOP) > 1000


@pytest.mark.slow  # a whole epoch
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process's peak was")
def test_a_distilled_run_takes_little_memory_with_data_and_cache_resident(teacher_checkpoint: Path):
    assert peak_memory(teacher_checkpoint) <= 140
