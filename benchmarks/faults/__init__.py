"""Faults that are injected into small runs, and the state they leave the runs in: `python -m benchmarks.faults`.

==========  ===========================================================================
`families`  the runs: one of each family of schemes, and of the drop-in callback
`moments`   actions at chosen moments of training, and of the writing of a checkpoint
`values`    values that are not finite, in inputs, outputs, gradients and weights
`kinds`     the faults, by kind, each with the end that it may have
`workers`   data whose loader has worker processes
`process`   runs in processes forked from this one, which has imported everything
`evidence`  checkpoints that a run leaves, other files, weights and rows of metrics
`trial`     one fault: the run with it, the resumed run, and the verdict
`ranks`     faults on one of two processes
`report`    the tables in docs/reliability.md
==========  ===========================================================================
"""
