"""Fault tolerance: what a run loses to a fault is at most what came after its last checkpoint.

=================  ====================================================================================
`callback`         `FaultTolerance`: attaches its parts for the length of a fit
=================  ====================================================================================

Its first part, `kd_lightning.core.finite_check.FiniteCheck`, belongs to every `Learner` as well.
"""

from kd_lightning.callbacks.fault_tolerance.callback import FaultTolerance

__all__ = ["FaultTolerance"]
