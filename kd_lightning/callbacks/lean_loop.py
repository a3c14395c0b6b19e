"""Little around the steps at which nothing is due."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from kd_lightning.callbacks import step_graph
from kd_lightning.callbacks.lean_epoch import lean, refusal, stock
from kd_lightning.callbacks.step_graph import StepGraph

log = logging.getLogger(__name__)


class LeanLoop(Callback):
    """Runs the steps at which nothing is due through a leaner loop, bit for bit equal to Lightning's own.

    Lightning makes about a thousand Python calls around a step, most of which find that there is nothing to do. Between
    the steps at which a log, a validation, a checkpoint or a movement of the bar is due, this loop makes only the calls
    that do something: every hook that is overridden is called, with its arguments and in its order, and weights,
    optimizer, counters, checkpoints and events are the same. It works for any LightningModule under automatic
    optimization, on one device or with DistributedDataParallel, in ``32-true``, ``64-true`` and ``bf16-mixed``, with
    gradient clipping, accumulation and schedulers. Whatever it does not understand runs through Lightning's own loop,
    and `reason` and a line in the log say why.

    On a GPU a small network takes less time than Python takes to launch it. With `cuda_graph`, the steps at which
    nothing is due are recorded once, from the forward pass to the optimizer's, and replayed: the same kernels on the
    same memory, so the same weights. It is for a `training_step` that does the same for each batch, in tensors alone,
    which it changes in place, as all of ours do; and for an optimizer that counts on the GPU, with ``fused=True``. What
    cannot be recorded runs as it does without, and `unrecorded` and a line in the log say why.

    Args:
        enabled: Off, every step is Lightning's own: to compare, or because the command line has a lean loop by default.
        cuda_graph: Records the quiet steps as a CUDA graph.

    Example:
        >>> trainer = Trainer(callbacks=[LeanLoop()], logger=False, enable_checkpointing=False)
    """

    reason: str | None = None
    """Why every step of the last fit was Lightning's own; None where it was not."""
    unrecorded: str | None = None
    """Why no step of the last fit was replayed, where that was asked for."""

    def __init__(self, enabled: bool = True, cuda_graph: bool = False) -> None:
        self.enabled = enabled
        self.cuda_graph = cuda_graph
        self._graph: StepGraph | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the trainer, which is complete now."""
        self.reason = refusal(trainer) if self.enabled else "it is not enabled"
        self._graph, self.unrecorded = None, None
        if self.cuda_graph:
            self.unrecorded = self.reason or step_graph.refusal(trainer)
            self._graph = StepGraph() if self.unrecorded is None else None
        if self.reason is None:
            lean(trainer, self._graph)
        elif trainer.is_global_zero:
            log.info(f"LeanLoop: every step is Lightning's own: {self.reason}")
        if self.unrecorded is not None and trainer.is_global_zero:
            log.info(f"LeanLoop: no step is replayed: {self.unrecorded}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says if recording failed."""
        if self._graph is not None and self._graph.failure is not None and self.unrecorded is None:
            self.unrecorded = self._graph.failure
            log.info(f"LeanLoop: no step is replayed: {self.unrecorded}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the trainer its loop back, and the graph's memory."""
        stock(trainer)
        self._graph = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives it back when the fit fails, too."""
        self.teardown(trainer, pl_module, "fit")
