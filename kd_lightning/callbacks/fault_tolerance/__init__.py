"""Fault tolerance: a run loses to a fault at most the steps after its last checkpoint.

=================  ====================================================================================
`callback`         `FaultTolerance`: attaches its parts for the length of a fit
`saves`            no checkpoint of a moment that could not be resumed exactly
`signals`          SIGTERM and SIGINT, which all processes act on at the same optimizer step
`ranks`            the end of a process whose fit has failed, for which no other process waits
`group_timeout`    time-outs of operations between processes
=================  ====================================================================================

Its first part, `kd_lightning.core.finite_check.FiniteCheck`, belongs to every `Learner` as well.
"""

from kd_lightning.callbacks.fault_tolerance.callback import FaultTolerance

__all__ = ["FaultTolerance"]
