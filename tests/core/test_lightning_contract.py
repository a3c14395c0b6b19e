"""Every private name that the package touches is there, with the type or signature that the package relies on.

A new release of Lightning, torch, argparse or jsonargparse that drops or changes one fails here, by the name.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch._dynamo
from jsonargparse import _loaders_dumpers
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops import fetchers
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization import automatic
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.distributed import distributed_c10d

from kd_lightning.cli import argparse_internals
from kd_lightning.core import launcher_internals, lightning_internals, torch_internals
from tests import toys

PACKAGE = Path(lightning_internals.__file__).parents[1]
LIGHTNINGS = [Path(module.__file__) for module in (launcher_internals, lightning_internals)]
HOMES = {*LIGHTNINGS, *(Path(module.__file__) for module in (argparse_internals, torch_internals))}


class Step(Callback):
    """Keeps what a trainer has in the midst of an epoch, by the name of each entry."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, (read, _) in ATTRIBUTES.items():
            try:
                self.values[name] = read(trainer)
            except (AttributeError, KeyError, IndexError) as error:
                self.values[name] = error


def epoch_loop(trainer: Any) -> Any:
    return trainer.fit_loop.epoch_loop


def progress(trainer: Any) -> Any:
    return epoch_loop(trainer).automatic_optimization.optim_progress.optimizer


def a_metric(trainer: Any) -> Any:
    return next(iter(epoch_loop(trainer)._results.values()))


ATTRIBUTES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    # in the instance's own dictionary, where steps read and write them
    "LightningModule._current_fx_name": (lambda t: vars(t.lightning_module)["_current_fx_name"], str),
    "LightningModule._trainer": (lambda t: t.lightning_module._trainer, Trainer),
    "epoch_loop._batches_that_stepped": (lambda t: vars(epoch_loop(t))["_batches_that_stepped"], int),
    "epoch_loop._restarting": (lambda t: epoch_loop(t)._restarting, bool),
    "epoch_loop._skip_next_val": (lambda t: epoch_loop(t)._skip_next_val, bool),
    "epoch_loop._results": (lambda t: epoch_loop(t)._results, result._ResultCollection),
    "epoch_loop._results.values": (a_metric, result._ResultMetric),
    "epoch_loop._results.value": (lambda t: vars(a_metric(t))["value"], torch.Tensor),
    "epoch_loop._results.batch": (lambda t: vars(epoch_loop(t)._results)["batch"], tuple | list),
    "epoch_loop._results.batch_size": (lambda t: vars(epoch_loop(t)._results)["batch_size"], int | None),
    "epoch_loop._results.dataloader_idx": (lambda t: vars(epoch_loop(t)._results)["dataloader_idx"], int | None),
    "epoch_loop._warning_cache": (lambda t: epoch_loop(t)._warning_cache.warn, Callable),
    "automatic_optimization._skip_backward": (lambda t: epoch_loop(t).automatic_optimization._skip_backward, bool),
    "trainer._results": (lambda t: t._results, result._ResultCollection),
    "trainer._val_check_time_interval": (lambda t: t._val_check_time_interval, float | None),
    "trainer._signal_connector": (lambda t: t._signal_connector.received_sigterm, bool),
    "trainer._logger_connector._first_loop_iter": (lambda t: vars(t._logger_connector)["_first_loop_iter"], bool),
    "trainer._logger_connector.on_batch_end": (lambda t: t._logger_connector.on_batch_end, Callable),
    "trainer._logger_connector.update_train_step_metrics": (
        lambda t: t._logger_connector.update_train_step_metrics,
        Callable,
    ),
    "fit_loop._data_fetcher": (lambda t: t.fit_loop._data_fetcher, fetchers._PrefetchDataFetcher),
    "fit_loop._data_fetcher.fetched": (lambda t: t.fit_loop._data_fetcher.fetched, int),
    "fit_loop._data_fetcher.length": (lambda t: t.fit_loop._data_fetcher.length, int),
    "fit_loop._data_fetcher.done": (lambda t: t.fit_loop._data_fetcher.done, bool),
    "fit_loop._data_fetcher.iterator": (lambda t: t.fit_loop._data_fetcher.iterator.__next__, Callable),
    # without an underscore, but in no document
    "epoch_loop.batch_progress.total.ready": (lambda t: epoch_loop(t).batch_progress.total.ready, int),
    "epoch_loop.batch_progress.total.started": (lambda t: epoch_loop(t).batch_progress.total.started, int),
    "epoch_loop.batch_progress.total.processed": (lambda t: epoch_loop(t).batch_progress.total.processed, int),
    "epoch_loop.batch_progress.current.completed": (lambda t: epoch_loop(t).batch_progress.current.completed, int),
    "epoch_loop.batch_progress.is_last_batch": (lambda t: epoch_loop(t).batch_progress.is_last_batch, bool),
    "epoch_loop.scheduler_progress.total.ready": (lambda t: epoch_loop(t).scheduler_progress.total.ready, int),
    "epoch_loop.max_steps": (lambda t: epoch_loop(t).max_steps, int),
    "epoch_loop.val_loop.restarting": (lambda t: epoch_loop(t).val_loop.restarting, bool),
    "optim_progress.optimizer_steps": (
        lambda t: epoch_loop(t).automatic_optimization.optim_progress.optimizer_steps,
        int,
    ),
    "optim_progress.optimizer.step.total.ready": (lambda t: progress(t).step.total.ready, int),
    "optim_progress.optimizer.zero_grad.total.started": (lambda t: progress(t).zero_grad.total.started, int),
    "fit_loop.epoch_progress.total.started": (lambda t: t.fit_loop.epoch_progress.total.started, int),
    "fit_loop.epoch_progress.total.processed": (lambda t: t.fit_loop.epoch_progress.total.processed, int),
    "trainer.num_training_batches": (lambda t: t.num_training_batches, int),
    "trainer.val_check_batch": (lambda t: t.val_check_batch, int | float),
    "trainer.gradient_clip_val": (lambda t: t.gradient_clip_val, float | None),
    "trainer.accumulate_grad_batches": (lambda t: t.accumulate_grad_batches, int),
    "trainer.lr_scheduler_configs.interval": (lambda t: t.lr_scheduler_configs[0].interval, str),
    "trainer.lr_scheduler_configs.frequency": (lambda t: t.lr_scheduler_configs[0].frequency, int),
    "trainer.lr_scheduler_configs.reduce_on_plateau": (lambda t: t.lr_scheduler_configs[0].reduce_on_plateau, bool),
    "trainer.profiler": (lambda t: t.profiler, PassThroughProfiler),
    "trainer.strategy": (lambda t: t.strategy, SingleDeviceStrategy),
    "trainer.precision_plugin": (lambda t: t.precision_plugin, Precision),
}
"""Of a trainer in the midst of an epoch: how each is read, and its type."""


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Step:
    kept, learner = Step(), toys.classifier()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1)]
    learner.configure_optimizers = lambda: ([optimizer], schedulers)
    folder = tmp_path_factory.mktemp("contract")
    toys.trainer(folder, kept, max_epochs=1, accelerator="cpu", gradient_clip_val=0.5).fit(learner, toys.data())
    return kept


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_trainer_has_it_in_the_midst_of_an_epoch(name, step):
    value, expected = step.values[name], ATTRIBUTES[name][1]
    assert not isinstance(value, Exception), value
    assert isinstance(value, expected), type(value)


METHODS: dict[tuple[Any, str], str] = {
    (_TrainingEpochLoop, "run"): "(self, data_fetcher)",
    (_TrainingEpochLoop, "advance"): "(self, data_fetcher)",
    (_TrainingEpochLoop, "on_advance_end"): "(self, data_fetcher)",
    (_TrainingEpochLoop, "on_run_start"): "(self, data_fetcher)",
    (_TrainingEpochLoop, "on_iteration_done"): "(self)",
    (_TrainingEpochLoop, "reset"): "(self)",
    (_TrainingEpochLoop, "update_lr_schedulers"): "(self, interval, update_plateau_schedulers)",
    (_TrainingEpochLoop, "_should_accumulate"): "(self)",
    (_TrainingEpochLoop, "_should_check_val_epoch"): "(self)",
    (_TrainingEpochLoop, "_should_check_val_fx"): "(self, data_fetcher)",
    (_TrainingEpochLoop, "_num_ready_batches_reached"): "(self)",
    (_TrainingEpochLoop, "_broadcast_sigterm_tensor"): "(self)",
    (_FitLoop, "_should_accumulate"): "(self)",
    (automatic._AutomaticOptimization, "run"): "(self, optimizer, batch_idx, kwargs)",
    (automatic.ClosureResult, "__init__"): "(self, closure_loss, extra=<factory>)",
    (automatic.ClosureResult, "from_training_step_output"): "(training_step_output, normalize=1)",
    (automatic.ClosureResult, "asdict"): "(self)",
    (fetchers._PrefetchDataFetcher, "__next__"): "(self)",
    (result._ResultCollection, "__setitem__"): None,
    (result._ResultCollection, "log"): "(self, fx, name, value, prog_bar=False, logger=True, on_step=False, "
    "on_epoch=True, reduce_fx=<built-in mean>, enable_graph=False, sync_dist=False, sync_dist_fn=<function no_op>, "
    "sync_dist_group=None, add_dataloader_idx=True, batch_size=None, metric_attribute=None, rank_zero_only=False)",
    (result._ResultMetric, "to"): "(self, *args, **kwargs)",
    (LightningModule, "_on_before_batch_transfer"): "(self, batch, dataloader_idx=0)",
    (LightningModule, "training_step"): "(self, *args, **kwargs)",
    (Callback, "_generate_state_key"): "(self, **kwargs)",
    (Callback, "on_train_batch_start"): "(self, trainer, pl_module, batch, batch_idx)",
    (Callback, "on_train_batch_end"): "(self, trainer, pl_module, outputs, batch, batch_idx)",
    (LightningOptimizer, "step"): "(self, closure=None, **kwargs)",
    (Precision, "clip_gradients"): "(self, optimizer, clip_val=0.0, "
    "gradient_clip_algorithm=<GradClipAlgorithmType.NORM: 'norm'>)",
    (ModelCheckpoint, "_should_save_on_train_epoch_end"): "(self, trainer)",
    (ExperimentWriter, "_check_log_dir_exists"): "(self)",
    (ExperimentWriter, "_rewrite_with_new_header"): "(self, fieldnames)",
    (ExperimentWriter, "log_metrics"): "(self, metrics_dict, step=None)",
    (torch, "_sample_dirichlet"): None,  # builtin
    (torch, "_foreach_norm"): None,  # builtin
    (nn.MultiheadAttention, "_reset_parameters"): "(self)",
}
"""Methods, and the signature without annotations; None where one cannot be had."""


def plain_signature(function: Any) -> str:
    """Without annotations, whose form changes with Python, and without addresses of functions."""
    found = inspect.signature(function)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    text = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    text = re.sub(r"<function (?:\w+\.)*(\w+) at 0x\w+>", r"<function \1>", text)
    return re.sub(r"<built-in method (\w+) of type object at 0x\w+>", r"<built-in \1>", text)


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        pytest.param(*where, signature, id=f"{getattr(where[0], '__name__', '')}.{where[1]}")
        for where, signature in METHODS.items()
    ],
)
def test_a_method_is_there_and_takes_what_it_took(owner, name, expected):
    method = getattr(owner, name)
    assert callable(method)
    assert expected is None or plain_signature(method) == expected


INSTANCES: dict[str, tuple[Callable[[], Any], Any]] = {
    "ModelCheckpoint._enable_version_counter": (
        lambda: ModelCheckpoint(enable_version_counter=False)._enable_version_counter,
        False,
    ),
    "ModelCheckpoint._every_n_train_steps": (lambda: ModelCheckpoint(every_n_train_steps=3)._every_n_train_steps, 3),
    "ModelCheckpoint._every_n_train_steps, of epochs": (
        lambda: ModelCheckpoint(every_n_epochs=3)._every_n_train_steps,
        0,
    ),
    "ModelCheckpoint._train_time_interval": (
        lambda: ModelCheckpoint(train_time_interval=timedelta(1))._train_time_interval,
        timedelta(1),
    ),
    "ModelCheckpoint._every_n_epochs": (lambda: ModelCheckpoint(every_n_epochs=3)._every_n_epochs, 3),
    "ModelCheckpoint._every_n_epochs, of steps": (lambda: ModelCheckpoint(every_n_train_steps=3)._every_n_epochs, 0),
    "ModelCheckpoint._save_on_train_epoch_end": (lambda: ModelCheckpoint()._save_on_train_epoch_end, None),
    "ModelCheckpoint._train_time_interval, of epochs": (lambda: ModelCheckpoint()._train_time_interval, None),
    "ModelCheckpoint._last_global_step_saved": (lambda: ModelCheckpoint()._last_global_step_saved, 0),
    "DDPStrategy._ddp_kwargs": (
        lambda: DDPStrategy(find_unused_parameters=True)._ddp_kwargs,
        {"find_unused_parameters": True},
    ),
    "DDPStrategy._model_averager": (lambda: DDPStrategy()._model_averager, None),
    "Trainer._signal_connector._original_handlers": (lambda: Trainer()._signal_connector._original_handlers, {}),
    "DDPStrategy._timeout": (lambda: DDPStrategy(timeout=timedelta(seconds=7))._timeout, timedelta(seconds=7)),
    "_SubprocessScriptLauncher.procs": (lambda: _SubprocessScriptLauncher(LightningEnvironment(), 2, 1).procs, []),
    "WeightAveraging._average_model": (lambda: WeightAveraging()._average_model, None),
    "CSVLogger._experiment": (lambda: CSVLogger("", version="")._experiment, None),
    "Closure.warning_cache": (lambda: callable(automatic.Closure.warning_cache.warn), True),
    "rank_zero_experiment": (lambda: callable(rank_zero_experiment), True),
    "MixedPrecision.scaler": (lambda: MixedPrecision("bf16-mixed", "cpu").scaler, None),
    "RichProgressBar.refresh_rate": (lambda: RichProgressBar(refresh_rate=7).refresh_rate, 7),
    "TQDMProgressBar.is_enabled": (lambda: TQDMProgressBar(refresh_rate=7).is_enabled, True),
    "is_param_in_hook_signature": (
        lambda: is_param_in_hook_signature(lambda batch, batch_idx: 0, "batch_idx", min_args=2),
        True,
    ),
    "ArgumentParser._option_string_actions": (
        lambda: sorted(argparse.ArgumentParser()._option_string_actions),
        ["--help", "-h"],
    ),
    "ArgumentParser._actions": (lambda: [a.dest for a in argparse.ArgumentParser()._actions], ["help"]),
    "_loaders_dumpers.yaml_default_loader": (lambda: hasattr(_loaders_dumpers, "yaml_default_loader"), True),
    "Optimizer._optimizer_step_pre_hooks": (lambda: [*of_an_optimizer()._optimizer_step_pre_hooks], []),
    "Optimizer._optimizer_step_post_hooks": (lambda: [*of_an_optimizer()._optimizer_step_post_hooks], []),
    "Module._compiled_call_impl": (lambda: nn.Linear(1, 1)._compiled_call_impl, None),
    "Module._modules": (lambda: [*nn.Sequential(nn.ReLU())._modules], ["0"]),
    "Module._parameters": (lambda: [*nn.Linear(1, 1)._parameters], ["weight", "bias"]),
    "Tensor._version": (lambda: torch.zeros(1).add_(1)._version, 1),
    "torch._dynamo.config.skip_nnmodule_hook_guards": (
        lambda: type(torch._dynamo.config.skip_nnmodule_hook_guards),
        bool,
    ),
    "_set_pg_timeout, or a public one": (
        lambda: callable(getattr(torch.distributed, "set_timeout", distributed_c10d._set_pg_timeout)),
        True,
    ),
    "_abort_process_group": (lambda: callable(distributed_c10d._abort_process_group), True),
    "_BatchNorm": (lambda: issubclass(nn.BatchNorm2d, nn.modules.batchnorm._BatchNorm), True),
    "_DropoutNd": (lambda: issubclass(nn.Dropout2d, nn.modules.dropout._DropoutNd), True),
}
"""What is read of an object that anyone can build, and its value."""


def of_an_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize("name", INSTANCES)
def test_an_object_has_it(name):
    read, expected = INSTANCES[name]
    assert read() == expected


def test_hyper_parameters_name_the_command_line_that_built_a_module():
    """Lightning's own source is the only place that says it."""
    assert f'hparams["{lightning_internals.INSTANTIATOR}"] = ' in inspect.getsource(
        inspect.getmodule(LightningDataModule.save_hyperparameters)
    )


def test_a_validation_can_be_run_before_the_first_step(tmp_path):
    class Validates(Callback):
        def __init__(self) -> None:
            self.stages: list[str] = []

        def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
            self.stages.append("validation")

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.stages.append("training" if trainer.training else "not training")

        def on_train_start(self, trainer: Any, module: Any) -> None:
            lightning_internals.validate_at_train_start(trainer)

    seen, short = Validates(), {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    toys.trainer(tmp_path, seen, num_sanity_val_steps=0, **short).fit(toys.classifier(), toys.data(val_size=20))
    assert seen.stages == ["validation", "training", "training", "validation"]


# ---- nothing of it is anywhere else

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path not in HOMES)


def private_names_of_lightning() -> set[str]:
    """Every private attribute, method, class and function in the sources of Lightning that are installed."""
    root = Path(lightning.__file__).parent
    texts = [path.read_text(encoding="utf-8") for part in ("pytorch", "fabric") for path in (root / part).rglob("*.py")]
    return {name for text in texts for name in re.findall(r"(?:\.|def |class )(_[A-Za-z]\w*)", text)}


def definitions(tree: ast.Module) -> set[str]:
    """The private names that a file itself defines: functions, classes, variables and attributes of self."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            found.add(node.attr)
    return {name for name in found if name.startswith("_")}


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_own(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_self(node) or is_super


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Lightning's private names; those that the package's own classes define; those that its two files touch."""
    own = [definitions(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]
    home = "".join(path.read_text(encoding="utf-8") for path in LIGHTNINGS)
    touched = set(re.findall(r"(?:\.|\"|import |, |def )(_[A-Za-z]\w+)", home))
    return {"lightning": private_names_of_lightning(), "own": set().union(*own), "touched": touched}


def private_uses(text: str, known: dict[str, set[str]]) -> list[str]:
    """Where a file touches a private name of Lightning, as ``line: name``."""
    tree = ast.parse(text)
    here = definitions(tree)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lightning":
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr) and node.attr in known["lightning"]:
            if node.attr not in (known["own"] if is_own(node.value) else here):
                found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known["touched"]:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.FunctionDef) and node.name in known["touched"]:
            found.append((node.lineno, node.name))
    lines = enumerate(text.splitlines(), 1)
    found += [(n, line) for n, line in lines if re.search(r"lightning.*(?<!torch)\._[a-z]", line)]
    return [f"{line}: {name}" for line, name in sorted(found)]


NOT_LIGHTNINGS = {"_modules", "_parameters", "_version", "_dynamo", "_asdict"}
"""Names of torch and Python that Lightning's sources use as well; torch's are asserted above."""
DOCUMENTED = {"_generate_state_key"}
"""What Lightning's documentation tells callbacks to call."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_touches_a_private_name_of_lightning(path, known):
    known = known | {"lightning": known["lightning"] - NOT_LIGHTNINGS - DOCUMENTED}
    assert private_uses(path.read_text(encoding="utf-8"), known) == []


@pytest.mark.parametrize(
    "line",
    [
        "from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher",
        "started = trainer._logger_connector",
        "logged = trainer.fit_loop.epoch_loop._batches_that_stepped",
        "class Scheme:\n    def rank(self):\n        return self._trainer",
        "value = vars(module)['_current_fx_name']",
        "strategy = getattr(trainer.strategy, '_ddp_kwargs', {})",
        "class Rows(ExperimentWriter):\n    def _check_log_dir_exists(self):\n        pass",
        "fetched = trainer.lightning_module._anything_at_all",
    ],
)
def test_each_way_to_touch_one_would_be_found(line, known):
    assert private_uses(line, known)


@pytest.mark.parametrize(
    "line",
    [
        "from kd_lightning.losses.common.checks import check_logits",
        "class Scheme:\n    _results = None\n    def rows(self):\n        return self._results",
        "def _log(): ...\n\nother._log()",
    ],
)
def test_our_own_private_names_are_not_mistaken_for_lightnings(line, known):
    assert not private_uses(line, known | {"own": known["own"] | {"_results"}})


def test_every_private_name_in_its_home_is_asserted_here(known):
    table = [*ATTRIBUTES, *INSTANCES, *(name for _, name in METHODS), "_instantiator"]
    classes = {"_TrainingEpochLoop", "_AutomaticOptimization", "_PrefetchDataFetcher", "_ResultCollection"}
    asserted = {part for entry in table for part in re.findall(r"_[A-Za-z]\w+", entry)} | classes | {"_ResultMetric"}
    assert known["touched"] - asserted == set()
