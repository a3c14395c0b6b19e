"""The command line's engine: LightningCLI with this package's class names, defaults and messages."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from signal import SIGINT
from typing import Any, NoReturn, cast

import lightning
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import save
from typing_extensions import override

import kd_lightning
from kd_lightning.callbacks import FaultTolerance
from kd_lightning.callbacks.fault_tolerance.ranks import wait_for_main_process
from kd_lightning.cli import run_dir, run_loggers
from kd_lightning.cli.argparse_internals import destinations, values_read_by
from kd_lightning.cli.built_callbacks import build_callbacks
from kd_lightning.cli.components import PACKAGES, WRAPPERS, inherit_annotations, unexpected_nulls, with_our_names
from kd_lightning.cli.config_checks import config_faults, section_faults
from kd_lightning.cli.config_errors import describe_parse_error, with_location
from kd_lightning.cli.configs import find_config, merge
from kd_lightning.cli.errors import RunStopped, report_errors
from kd_lightning.cli.fit_summary import FitSummary
from kd_lightning.cli.log_filters import expected_messages_hidden, show_announcements
from kd_lightning.cli.run_errors import cause_of, usage_error
from kd_lightning.cli.yaml_file import Setting, ValueLoader, number_fault, read_yaml
from kd_lightning.core.attached import attach, callbacks_of
from kd_lightning.core.directory_lock import DirectoryLock
from kd_lightning.core.errors import UsageError
from kd_lightning.core.failures import describe, exit_code, is_user_error, wants_traceback
from kd_lightning.core.files import atomic_write

HEADER = [f"kd_lightning=={kd_lightning.__version__}", f"lightning=={lightning.__version__}"]
for package in PACKAGES:  # jsonargparse accepts short names of imported classes
    import_module(package)

COMMANDS = ("fit", "validate", "test", "predict")


class CLI(LightningCLI):
    """LightningCLI in subclass mode: builds a trainer, a model and its data from YAML files and options.

    The run directory is ``trainer.default_root_dir``. Unless the configuration names its own loggers and callbacks, a
    run writes TensorBoard's event files, ``metrics.csv``, ``best.ckpt`` and ``last.ckpt`` there, and resumes exactly.

    Args:
        args: Options such as ``["--config", "configs/response/kd.yaml", "--trainer.max_epochs=1"]``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        handles_sigint: Stop at the end of an optimizer step after Ctrl-C: for a process that has no other program.

    Raises:
        UsageError: A setting of the configuration is wrong.
    """

    def __init__(self, args: list[str], command: str = "fit", handles_sigint: bool = False) -> None:
        self.command = command
        self.handles_sigint = handles_sigint
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=run_dir.SaveConfig,
            trainer_defaults={"default_root_dir": "runs/run"},
            seed_everything_default=0,
            # A misspelt option could pass as an abbreviation of another.
            parser_kwargs={
                "prog": f"kd-lightning {command}",
                "exit_on_error": False,
                "allow_abbrev": False,
                "dump_header": HEADER,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
            run=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A checkpoint to resume (fit) or to evaluate; `last` and `best` are those of the run directory.",
        )
        also = "Loggers of a fit beside its others: csv, wandb or mlflow, or several with commas."
        parser.add_argument("--log", type=str | None, default=None, help=also)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        args, self.settings = _read(cast("list[str]", args))
        for setting in self.settings:
            if setting.value and (setting.path[-1] == "class_path" or setting.path == ("model",)):
                inherit_annotations(setting.value)
        for field, problem in section_faults(self.settings, destinations(parser)):
            raise self._error_at(field, problem)
        try:
            with values_read_by(ValueLoader):
                self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UsageError(describe_parse_error(error, self.settings, destinations(parser))) from error
        for field, expected in unexpected_nulls(self.config):
            if expected:
                raise self._error_at(field, f"expected {expected}, got null")
            if not self._is_set(field):
                owner, _, name = field.rpartition(".")
                raise self._error_at(owner, f"{name} is missing: give it a value, or the argument a default")
        for field, problem in config_faults(self.config, self.settings, self.command):
            raise self._error_at(field, problem)
        if problem := run_loggers.logger_fault(self.config["log"]):
            raise self._error_at("log", problem)
        folder = self.config["trainer.default_root_dir"]
        wanted = self.config["ckpt_path"] or (None if self.command == "fit" else run_dir.default_checkpoint(folder))
        self.ckpt_path = run_dir.find_checkpoint(folder, wanted)

    @override
    def instantiate_classes(self) -> None:
        self._whole_config = self.config
        try:
            self._callbacks = build_callbacks(self.parser, self.config)
            self.config = self.config.clone()
            self.config["trainer"]["callbacks"] = None
            super().instantiate_classes()
        except Exception as error:
            self.raise_located(error)
        finally:
            self.config = self._whole_config

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self.config_init["trainer"]
        folder = given["default_root_dir"]
        if given["logger"] in (None, True):
            given["logger"] = run_loggers.default_loggers(folder) if self.command == "fit" else False
        if self.command == "fit" and self.config["log"]:
            given["logger"] = run_loggers.with_loggers(given["logger"], self.config["log"], folder)
        given["callbacks"] = run_dir.add_default_callbacks(
            self._callbacks,
            folder,
            self.model,
            checkpoints=given["enable_checkpointing"] is not False,
            progress_bar=given["enable_progress_bar"] is not False,
            handles_sigint=self.handles_sigint,
        )
        self.config = self._whole_config  # which is saved in the run directory
        return super().instantiate_trainer(**kwargs)

    def run(self) -> None:
        """Run the command.

        Raises:
            UsageError: A setting, a checkpoint or the data cannot be used.
        """
        fits = self.command == "fit" and not self.trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]
        lock: DirectoryLock | None = None
        try:
            if fits and self.trainer.is_global_zero:  # the first process starts the others, or they wait
                lock = run_dir.claim(self.trainer.default_root_dir, self.ckpt_path)
            if self.ckpt_path:
                run_dir.check_checkpoint(self.ckpt_path)
            command = getattr(self.trainer, self.command)
            result = command(self.model, datamodule=self.datamodule, ckpt_path=self.ckpt_path, weights_only=True)
            show_announcements()  # of a run without callbacks, such as a validation
            if self.command == "predict":
                self._write(result)
        except SystemExit as end:  # Lightning has saved and cleaned up
            saved = Path(self.trainer.default_root_dir) / "last.ckpt"
            resume = f": resume with --ckpt_path {saved}" if fits and saved.is_file() else ""
            is_stop = isinstance(end, SIGTERMException)
            if is_stop:
                wait_for_main_process(self.trainer)
            if isinstance(end.__context__, KeyboardInterrupt) or (is_stop and self._received_signal() == SIGINT):
                raise RunStopped(f"interrupted{resume}", 130) from end
            if is_stop:
                raise RunStopped(f"terminated{resume}", 143) from end
            raise
        except Exception as error:
            if self.trainer.world_size > 1 and not is_user_error(error) and not wants_traceback():
                raise RunStopped(describe(error), exit_code(error)) from error
            self.raise_located(error)
        finally:
            if lock is not None:
                lock.release()

    def _received_signal(self) -> int:
        callbacks = callbacks_of(self.trainer)
        found = (callback.received_signal for callback in callbacks if isinstance(callback, FaultTolerance))
        return next(found, 0)

    def _write(self, batches: list[Any]) -> None:
        if self.trainer.world_size > 1 or not all(isinstance(batch, torch.Tensor) for batch in batches):
            raise UsageError("predict: needs one process and a model that returns logits: set --trainer.devices=1")
        path = Path(self.trainer.default_root_dir) / "predictions.safetensors"
        logits = torch.cat(batches)
        with atomic_write(path) as stream:
            stream.write(save({"logits": logits}))
        print(f"{path}: logits {tuple(logits.shape)}, in the order of the test set")

    def raise_located(self, error: BaseException) -> NoReturn:
        """Raise a `UsageError` with the setting that caused an error, or the error itself if it is a bug."""
        cause = cause_of(error)
        known = usage_error(cause, self.config, self.settings, self.ckpt_path)
        if known is None:
            raise cause
        raise known from cause

    def _is_set(self, field: str) -> bool:
        keys = tuple(field.split("."))
        return any(tuple(key for key in setting.path if key not in WRAPPERS) == keys for setting in self.settings)

    def _error_at(self, field: str, message: str) -> UsageError:
        return UsageError(with_location(self.settings, field.split("."), message))


def build(args: list[str]) -> CLI:
    """Build the trainer, model and data of ``kd-lightning fit`` without training.

    Args:
        args: The arguments after ``kd-lightning fit``.

    Returns:
        An object with ``.trainer``, ``.model``, ``.datamodule`` and ``.config``; ``.run()`` fits.

    Raises:
        UsageError: A setting of the configuration is wrong.
    """
    with expected_messages_hidden():
        return CLI(args)


def main(args: list[str] | None = None) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: The arguments after ``kd-lightning``; the process's own arguments if not given.

    Returns:
        The exit code: 0; 2 after a user's mistake; 130 after Ctrl-C, and 143 after SIGTERM.
    """
    given = sys.argv[1:] if args is None else args

    def command() -> int:
        if not given or given[0] not in COMMANDS:
            raise UsageError(f"name a command: {', '.join(COMMANDS)}; got {given[0] if given else 'nothing'}")
        with expected_messages_hidden():
            cli = CLI(given[1:], given[0], handles_sigint=True)
            attach(cli.trainer, summary := FitSummary())
            cli.run()
        if given[0] == "fit" and cli.trainer.is_global_zero:
            print("\n".join(summary.lines(cli.trainer, cli.model, cli.datamodule)))
        return 0

    return report_errors(command)


def _read(args: list[str]) -> tuple[list[str], list[Setting]]:
    """Merge all YAML files into one argument, and list everything that files and options set.

    jsonargparse merges files, too, but replaces mappings such as the terms as a whole.
    """
    config: dict[str, Any] = {}
    options: list[str] = []
    settings: list[Setting] = []
    rest = iter(args)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            file = read_yaml(find_config(value if equals else next(rest, "")))
            settings += file.settings
            config = merge(config, file.values)
        else:
            options.append(argument)
    for argument, following in zip_longest(options, options[1:]):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            settings.append(Setting(tuple(name.rstrip("+").split(".")), value if equals else following, ""))
            if fault := number_fault(settings[-1].value or ""):
                raise UsageError(f"--{name}: {fault}")
    files = [f"--config={yaml.safe_dump(with_our_names(config), sort_keys=False)}"] if config else []
    return files + options, settings
