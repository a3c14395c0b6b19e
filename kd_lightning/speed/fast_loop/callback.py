"""The callback that installs the fast loop for a fit."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from kd_lightning.speed.fast_loop.cuda_graph import CUDAGraphStep, why_not_recordable
from kd_lightning.speed.fast_loop.epoch import install, uninstall
from kd_lightning.speed.fast_loop.support import why_unsupported


class FastLoop(Callback):
    """Runs most training steps with a fraction of Lightning's Python calls; the results are the same bit for bit.

    Lightning makes about a thousand Python calls around a step, most of which find nothing to do. In steps without
    logging, validation or checkpointing, this loop makes only the calls that do something. Every overridden hook is
    called, with its arguments and in its order, and weights, optimizer, counters, checkpoints and events are the same.

    It supports any LightningModule under automatic optimization with one optimizer, on one device or with
    DistributedDataParallel, in ``32-true``, ``64-true`` and ``bf16-mixed``, with gradient clipping, accumulation and
    schedulers. Anything else, and every release of Lightning that it was not tested with, runs in Lightning's own loop;
    one line at the start of the fit, and `reason`, tell why.

    On a GPU a small network takes less time than Python takes to launch it. With `cuda_graph` the steps without
    logging, validation or checkpointing are recorded once, from the forward pass to the optimizer's step, and replayed:
    the same kernels on the same memory, hence the same weights. That requires a `training_step` which does the same for
    each batch, in operations on tensors alone (see `steps_are_alike` in `kd_lightning.core.traits`), and an optimizer
    which counts its steps on the GPU, with ``fused=True``. Steps that cannot be recorded run as without `cuda_graph`;
    one line, and `unrecorded`, tell why.

    Args:
        enabled: False runs every step in Lightning's own loop: for comparisons, as the command line adds a `FastLoop`.
        cuda_graph: Replay steps as a CUDA graph.

    Example:
        >>> trainer = Trainer(callbacks=[FastLoop()], logger=False, enable_checkpointing=False)
    """

    reason: str | None = None
    """Why Lightning's own loop ran every step of the last fit; None if it did not."""
    unrecorded: str | None = None
    """Why no step of the last fit was replayed, if `cuda_graph` is on."""

    def __init__(self, enabled: bool = True, cuda_graph: bool = False) -> None:
        self.enabled = enabled
        self.cuda_graph = cuda_graph
        self._graph: CUDAGraphStep | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the loop, or tell why not: optimizers, loaders and other callbacks are complete by now."""
        self.reason = why_unsupported(trainer) if self.enabled else "FastLoop is not enabled"
        self._graph, self.unrecorded = None, None
        if self.cuda_graph:
            self.unrecorded = self.reason or why_not_recordable(trainer)
            self._graph = CUDAGraphStep() if self.unrecorded is None else None
        if self.reason is None:
            install(trainer, self._graph)
        elif self.enabled and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            rank_zero_info(f"FastLoop: every step runs in Lightning's own loop: {self.reason}")
        if self.reason is None and self.unrecorded is not None:
            rank_zero_info(f"FastLoop: no step is replayed as a CUDA graph: {self.unrecorded}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell, once, if the recording has failed."""
        if self._graph is not None and self._graph.failure is not None and self.unrecorded is None:
            self.unrecorded = self._graph.failure
            rank_zero_info(f"FastLoop: no step is replayed as a CUDA graph: {self.unrecorded}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore Lightning's own loop and free the graph's memory."""
        uninstall(trainer)
        self._graph = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore Lightning's own loop after a failed fit, too."""
        self.teardown(trainer, pl_module, "fit")
