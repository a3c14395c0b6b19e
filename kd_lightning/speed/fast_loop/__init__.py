"""A training loop that equals Lightning's bit for bit and makes a fraction of its Python calls.

=================  ====================================================================================
`callback`         `FastLoop`: installs the loop for a fit, and tells the user where it cannot
`support`          trainers it supports, and the reasons for the others
`epoch`            an epoch: which steps run here and which in Lightning's own loop
`next_step`        prediction of the next step's end: validation, a checkpoint, logging, a bar
`step`             one step: fetch a batch, call the hooks, optimize, count, log
`optimization`     forward, backward, clipping, the optimizer, the schedulers
`hooks`            hooks that are overridden, and those that do nothing in most steps
`results`          logged values, without searching them for tensors to move
`cuda_graph`       steps recorded once as a CUDA graph and replayed
=================  ====================================================================================
"""

from kd_lightning.speed.fast_loop.callback import FastLoop

__all__ = ["FastLoop"]
