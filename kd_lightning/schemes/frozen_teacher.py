"""The base class of all schemes with a frozen teacher."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kd_lightning.core.activations import Activations, differentiable, tap
from kd_lightning.core.arguments import check_is_network
from kd_lightning.core.batch import Batch
from kd_lightning.core.freezing import check_sharing, freeze
from kd_lightning.core.learner import Learner
from kd_lightning.core.lightning_internals import attached_trainer
from kd_lightning.core.network_call import check_unchanged, tensors_in, without_graph
from kd_lightning.core.teacher_holder import TeacherHolder, load_held

TeacherSource = Callable[[Batch], Activations]


class FrozenTeacher(Learner, ABC):
    """A scheme with a frozen teacher, which its ``__init__`` assigns as ``self.teacher``.

    The teacher is held outside the module's tree (`kd_lightning.core.teacher_holder.TeacherHolder`), so that nothing
    that walks the module (optimizers, weight averages, pruning, checkpoints) reaches it. Its device and dtype follow
    the module, all processes start from rank 0's weights, and a hash of its weights is compared at the end of every fit
    and at a resume. There is no ``no_grad``: frozen parameters build no graph, and inputs that need a gradient still
    get one.

    A callback that changes the teacher makes it a submodule by `register_teacher`. A module whose teacher is held
    outside its tree loads a checkpoint with all of the teacher's keys or with none.

    A subclass assigns ``self.teacher`` and calls `teacher_activations` in `compute_losses`; callbacks such as
    `kd_lightning.callbacks.TeacherCache` then work with it.
    """

    teacher: nn.Module
    held_teacher: TeacherHolder
    teacher_source: TeacherSource | None = None
    """A function that returns the teacher's activations of a batch, such as a cache; None to run the teacher."""
    teacher_sees_data: bool = True
    """True where the teacher's inputs are rows of the data set, so that its outputs can be cached by their index."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a network assigned as the teacher is held outside the module's tree.

        Raises:
            UsageError: The teacher is no network, or shares parameters that learn with the student.
        """
        if name != "teacher":
            super().__setattr__(name, value)
            return
        check_is_network(value, name)
        if "teacher" in self._modules:  # a submodule already
            super().__setattr__(name, freeze(value))
        else:
            check_sharing(self.student, value)
            holder = TeacherHolder(value)
            vars(self).update(teacher=holder.network, held_teacher=holder)

    def teacher_activations(self, batch: Batch) -> Activations:
        """Return the activations of the teacher's layers that the terms address, from `teacher_source` if it is set."""
        return self.run_teacher(batch) if self.teacher_source is None else self.teacher_source(batch)

    def run_teacher(self, batch: Batch) -> Activations:
        """Run the teacher once and return the activations that the terms address; a subclass may run it differently.

        An input that the student made to require a gradient, by ``requires_grad_()``, gets none through the teacher,
        unless a loss takes derivatives by the input.

        Raises:
            UsageError: As for `tap`; or the teacher overwrote the student's input in place.
        """
        layers = self.terms.layers("teacher")
        if not layers:
            return {}
        inputs, is_tensor = batch.teacher, isinstance(batch.teacher, Tensor)
        if self.differentiates_input:
            inputs = differentiable(inputs)
        elif not is_tensor or inputs.requires_grad:
            inputs = without_graph(inputs)
        activations = tap(self.teacher, inputs, layers)
        if not is_tensor or inputs.__dict__:
            for tensor in tensors_in(inputs):
                check_unchanged(self.student, tensor)
        return activations

    def register_teacher(self) -> nn.Module:
        """Make the teacher a submodule and return it: in checkpoints, as it changes, but still frozen."""
        if "teacher" not in self._modules:
            network = vars(self).pop("teacher")
            del self.held_teacher
            self.add_module("teacher", network)
        return self.teacher

    @property
    def teacher_is_held(self) -> bool:
        """True unless the teacher is a submodule."""
        return "held_teacher" in vars(self)

    # ---- Lightning hooks

    def setup(self, stage: str) -> None:
        """Freeze the teacher again, after every callback's setup."""
        super().setup(stage)
        if self.teacher_is_held:
            freeze(self.teacher)

    def on_fit_start(self) -> None:
        """Move the teacher to the module's device, broadcast rank 0's weights and store their hash."""
        super().on_fit_start()
        expected = vars(self).pop("_expected_teacher", None)
        if self.teacher_is_held:
            self.terms.teacher_is_fixed = self.teacher_sees_data
            self.teacher.to(self.device)
            self.held_teacher.broadcast()
            self.held_teacher.remember(expected)
            self.held_teacher.announce(self.trainer)

    def on_fit_end(self) -> None:
        """Check that the teacher's weights have not changed since the start of the fit."""
        if self.teacher_is_held:
            self.held_teacher.prove()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the teacher's hash, with which a resume compares its own teacher."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher_is_held:
            checkpoint["teacher_hash"] = self.held_teacher.hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the hash of the teacher with which the resumed run was started."""
        if attached_trainer(self) is not None and self.trainer.state.fn == "fit":
            vars(self)["_expected_teacher"] = checkpoint.get("teacher_hash")

    # ---- device, dtype and loading, which a submodule would get from the tree

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTeacher:
        super()._apply(fn, recurse)
        if self.teacher_is_held:
            self.held_teacher.apply(fn)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.teacher_is_held:
            load_held(self.held_teacher, state_dict, f"{prefix}teacher.", missing_keys, unexpected_keys)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
