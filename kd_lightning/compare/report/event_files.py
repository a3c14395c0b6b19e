"""Event files of TensorBoard, written whole and without torch."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, cast

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.text import plugin_data_pb2 as text_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from kd_lightning.compare.report.settings import Setting, is_of_distillation
from kd_lightning.core.files import atomic_write

# protobuf builds the classes of these modules while they are imported, so that a type checker finds none
_event, _tensor, _layout = cast("Any", event_pb2), cast("Any", tensor_pb2), cast("Any", layout_pb2)
_hparams, _session = cast("Any", api_pb2), cast("Any", plugin_data_pb2)
_text, _types, _shape = cast("Any", text_pb2), cast("Any", types_pb2), cast("Any", tensor_shape_pb2)
Summary = cast("Any", summary_pb2).Summary
_SummaryMetadata = cast("Any", summary_pb2).SummaryMetadata
Value = Any
"""A value of a step: a message ``Summary.Value``."""
SUFFIX = ".comparison"
"""The end of the names of the event files that are written here, by which an earlier report's are found."""


def write_event_file(folder: Path, values: Iterable[tuple[int, Value]]) -> Path:
    """Write an event file with the values of all steps, in place of the one that was written here before.

    The earlier file stays without content until the next time: a TensorBoard that is open returns to it once, then
    reads the new file and drops the values of the old one. It would fail at a file that has gone.

    Args:
        folder: The directory, which is a run in TensorBoard; created if missing.
        values: Steps with their values.

    Returns:
        The path of the file.
    """
    now, content = time(), io.BytesIO()
    events = [
        _event.Event(file_version="brain.Event:2"),
        _event.Event(session_log=_event.SessionLog(status=_event.SessionLog.START)),
    ]
    events += [_event.Event(step=step, summary=Summary(value=[value])) for step, value in values]
    writer = RecordWriter(content)
    for event in events:
        event.wall_time = now
        writer.write(event.SerializeToString())
    path = folder / f"events.out.tfevents.{now:.0f}{SUFFIX}"
    with atomic_write(path) as stream:
        stream.write(content.getvalue())
    for old in _own_files(folder):
        if old == path:
            continue
        if old.stat().st_size == 0:
            old.unlink()
        else:
            old.write_bytes(b"")
    return path


def remove_other_runs(root: Path, written: Iterable[Path]) -> None:
    """Remove the event files that `write_event_file` wrote for runs that are no more, with their empty directories.

    Args:
        root: TensorBoard's log directory.
        written: The event files of the runs that there are.
    """
    runs = {path.parent for path in written}
    for path in [path for path in _own_files(root, "**/") if path.parent not in runs]:
        path.unlink()
        with suppress(OSError):  # a directory has other files
            path.parent.rmdir()
            path.parent.parent.rmdir()


def _own_files(folder: Path, within: str = "") -> list[Path]:
    return sorted(folder.glob(f"{within}events.out.tfevents.*{SUFFIX}"))


def scalar(tag: str, value: float) -> Value:
    """Build a number of a curve."""
    return Summary.Value(tag=tag, simple_value=value)


def markdown(tag: str, text: str) -> Value:
    """Build a text of TensorBoard's Text page."""
    shape = _shape.TensorShapeProto(dim=[_shape.TensorShapeProto.Dim(size=1)])
    tensor = _tensor.TensorProto(dtype=_types.DT_STRING, tensor_shape=shape, string_val=[text.encode()])
    return Summary.Value(tag=tag, metadata=_metadata("text", _text.TextPluginData(version=0)), tensor=tensor)


def png(tag: str, content: bytes) -> Value:
    """Build an image from the bytes of a PNG file, whose header has its size."""
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
    return Summary.Value(tag=tag, image=image)


def margin_charts(categories: Mapping[str, Sequence[tuple[str, str, str]]]) -> Value:
    """Build the layout of the Custom Scalars page.

    Args:
        categories: Charts by the title of their category; a chart is the tag of a curve, which is its title as well,
            with the tags of the lower and the upper edge of its band. They are no regular expressions, unlike the tags
            of other charts.
    """
    layout = _layout.Layout(
        category=[
            # TensorBoard draws the last chart of a category first
            _layout.Category(title=title, chart=[_margin_chart(*tags) for tags in reversed(charts)])
            for title, charts in categories.items()
        ]
    )
    tensor = _tensor.TensorProto(
        dtype=_types.DT_STRING, tensor_shape=_shape.TensorShapeProto(), string_val=[layout.SerializeToString()]
    )
    return Summary.Value(tag="custom_scalars__config__", metadata=_metadata("custom_scalars"), tensor=tensor)


def _margin_chart(value: str, lower: str, upper: str) -> Any:
    return _layout.Chart(
        title=value, margin=_layout.MarginChartContent(series=[{"value": value, "lower": lower, "upper": upper}])
    )


def hparams_session(name: str, settings: Mapping[str, Setting]) -> list[Value]:
    """Build a row of the HParams page: the settings of one run."""
    start = _session.SessionStartInfo(group_name=name, start_time_secs=time())
    for key, value in settings.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    end = _session.SessionEndInfo(status=_hparams.STATUS_SUCCESS, end_time_secs=time())
    return [
        _hparams_value("session_start_info", _session.HParamsPluginData(session_start_info=start)),
        _hparams_value("session_end_info", _session.HParamsPluginData(session_end_info=end)),
    ]


def hparams_columns(settings: Sequence[Mapping[str, Setting]], metrics: Iterable[str]) -> Value:
    """Build the columns of the HParams page, with temperatures, weights and rates before the others.

    Args:
        settings: The settings of all rows; the values of a key have one type.
        metrics: Tags of the scalars that are shown beside them.
    """
    experiment = _hparams.Experiment()
    for key in dict.fromkeys(key for row in settings for key in row):
        values = list(dict.fromkeys(row[key] for row in settings if key in row))
        kinds: dict[type, Any] = {bool: _hparams.DATA_TYPE_BOOL, str: _hparams.DATA_TYPE_STRING}
        kind = kinds.get(type(values[0]), _hparams.DATA_TYPE_FLOAT64)
        # TensorBoard shows five columns at first: those that are said to differ, in the order of the alphabet
        column = experiment.hparam_infos.add(name=key, type=kind, differs=is_of_distillation(key))
        if kind == _hparams.DATA_TYPE_STRING:
            column.domain_discrete.extend(values)
    for tag in metrics:
        experiment.metric_infos.add(name=_hparams.MetricName(tag=tag))
    return _hparams_value("experiment", _session.HParamsPluginData(experiment=experiment))


def _hparams_value(name: str, content: Any) -> Value:
    tensor = _tensor.TensorProto(dtype="DT_FLOAT", tensor_shape=_shape.TensorShapeProto(), float_val=[0.0])
    return Summary.Value(tag=f"_hparams_/{name}", metadata=_metadata("hparams", content), tensor=tensor)


def _metadata(plugin: str, content: Any = None) -> Any:
    data = _SummaryMetadata.PluginData(plugin_name=plugin, content=content.SerializeToString() if content else b"")
    return _SummaryMetadata(plugin_data=data)
