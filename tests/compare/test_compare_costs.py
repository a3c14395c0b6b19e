"""The estimated duration of a run, and the costs of networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_plan import FILES, TRAINER, network
from torch import nn

from kd_lightning.cli.configs import merge
from kd_lightning.cli.engine import build
from kd_lightning.cli.log_filters import expected_messages_hidden
from kd_lightning.compare.measure.network_stats import measure_costs
from kd_lightning.compare.plan import costs
from kd_lightning.compare.plan.artifacts import ProfileResult
from kd_lightning.compare.plan.config import without_checkpoints
from kd_lightning.compare.run.profile import Profile
from kd_lightning.core.errors import UsageError

# Lightning's command line uses what jsonargparse has renamed
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

QUIET = {"trainer": TRAINER | {"enable_progress_bar": False, "enable_model_summary": False}}


def profile(name: str, changes: dict[str, Any], measure_network: bool = True) -> ProfileResult:
    config = merge(merge(FILES[name], QUIET), changes)
    return Profile(config, measure_network)(lambda fraction: None)


def test_a_variant_is_measured_without_the_checkpoint_of_its_teacher() -> None:
    found = profile("distilled.yaml", {})
    assert found.reason == ""
    assert found.seconds is not None
    assert costs.START_SECONDS < found.seconds < 60
    assert found.stats is not None
    assert (found.stats["name"], found.stats["parameters"], found.stats["flops"]) == ("MLP", 18_914, 37_792)
    assert json.loads(json.dumps(found)), "plain values"


def test_steps_that_differ_give_no_estimate_and_say_so() -> None:
    augmentation = {"class_path": "torchvision.transforms.v2.RandomAffine", "init_args": {"degrees": [-10, 10]}}
    terms = {"task": {"loss": {"class_path": "TaskLoss"}, "teacher": None}, "kd": {"loss": {"class_path": "KDLoss"}}}
    arguments = {"student": network(8), "peers": [network(8)], "terms": terms, "augmentation": augmentation}
    arguments["combine"] = {"class_path": "LinearEnsemble"}
    found = profile("alone.yaml", {"model": {"class_path": "KDCL", "init_args": arguments}})
    assert found.seconds is None
    assert found.reason == "steps of KDCL differ (steps_are_alike)"
    assert found.stats is not None


def test_data_from_other_runs_give_no_estimate_and_say_so() -> None:
    labels = {"class_path": "PseudoLabels", "init_args": {"labeler": {"checkpoint": "@few/teacher+1"}}}
    data = {"class_path": "ResidentDataModule", "init_args": {"source": labels}}
    with pytest.raises(UsageError, match=r"^its data need checkpoints of other runs \(@few/teacher\+1\)$"):
        profile("alone.yaml", {"data": data})


def test_a_fit_without_an_end_has_no_estimate() -> None:
    found = profile("alone.yaml", {"trainer": {"max_epochs": -1}}, measure_network=False)
    assert found == ProfileResult(None, "the fit has neither max_epochs nor max_steps", None)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_cached_teacher_runs_once_on_each_row(
    is_cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs.StepTimer, "seconds", lambda timer: 10.0)
    monkeypatch.setattr(costs, "milliseconds", lambda call: call() and 4000.0)
    config = without_checkpoints(merge(FILES["distilled.yaml"], QUIET))
    config["trainer"] |= {"default_root_dir": str(tmp_path / "run"), "callbacks": []}
    if is_cached:
        config["trainer"]["callbacks"] = [{"class_path": "TeacherCache"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with expected_messages_hidden():
        seconds = costs.estimate_seconds(build(["--config", str(tmp_path / "config.yaml")]))
    # 6 steps of 10 s with their validation; of each, 4 s are the teacher's, which needs 50 rows / 16 batches in a cache
    steps = 6 * 10 * costs.VALIDATION
    expected = steps + 4 * (50 / 16 - 6 * costs.VALIDATION) if is_cached else steps
    assert seconds == pytest.approx(costs.START_SECONDS + expected)


def test_the_timer_leaves_out_the_first_two_steps() -> None:
    timer = costs.StepTimer()
    timer.moments = [0.0, 9.0, 12.0, 13.0, 14.5, 15.5]
    assert timer.seconds() == 1.0
    timer.moments = [0.0, 9.0]
    assert timer.seconds() == 9.0


def test_networks_inside_others_are_built_without_their_checkpoints() -> None:
    loads = {
        "class_path": "kd_lightning.networks.load_teacher",
        "init_args": {"network": network(8), "checkpoint": "x"},
    }
    frozen = {"class_path": "kd_lightning.networks.freeze", "init_args": {"network": network(8)}}
    assert without_checkpoints({"members": [loads, {"rows": loads}], "width": 3}) == {
        "members": [frozen, {"rows": frozen}],
        "width": 3,
    }
    assert without_checkpoints(loads | {"class_path": "load_student"}) == network(8)
    alone = {"class_path": "load_student", "init_args": {"path": "x"}}
    assert without_checkpoints(alone) == alone, "it cannot be built without the file"


def test_inputs_of_several_tensors_leave_latency_unknown() -> None:
    layer = nn.Linear(3, 2)
    stats = measure_costs(layer.train(), {"a": torch.zeros(1, 3), "b": torch.zeros(1, 3)})
    assert (stats["parameters"], stats["flops"], stats["latency_1_ms"]) == (8, None, None)
    assert measure_costs(layer, torch.zeros(4, 3))["flops"] == 12
    assert layer.training
