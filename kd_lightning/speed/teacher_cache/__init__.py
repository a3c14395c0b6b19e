"""A teacher's outputs for all training rows, computed once and looked up by index.

=================  ====================================================================================
`callback`         `TeacherCache`: answers a scheme's requests for teacher outputs, and checks each batch
`training_rows`    every training row once, and a fingerprint of each
`teacher_pass`     the teacher's outputs for all of these rows
`lookup_table`     the outputs by index, and the comparison of a batch with the fingerprints
`directory`        the files in `cache_dir`: which one belongs to a run, written by one process for all
`file`             one file: safetensors, preallocated, sealed with a hash
=================  ====================================================================================
"""

from kd_lightning.speed.teacher_cache.callback import TeacherCache as TeacherCache
