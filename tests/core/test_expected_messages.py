"""Programs in Python can be as quiet as the command line."""

from __future__ import annotations

import logging
import warnings

import pytest
from lightning.pytorch import Trainer

from kd_lightning import freeze, hide_expected_messages
from kd_lightning.core.expected_messages import LOGGERS, is_no_advertisement
from tests import toys
from tests.callbacks.drop_in import Theirs, batches, distillation, teacher


@pytest.fixture(autouse=True)
def restored():
    with warnings.catch_warnings():
        yield
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(is_no_advertisement)


def messages(tmp_path, caplog) -> tuple[str, list[str]]:
    """What a fit of a drop-in and one of a scheme log, and what they warn of."""
    caplog.clear()
    with caplog.at_level("INFO"), warnings.catch_warnings(record=True) as caught:
        settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
        own = Theirs()
        own.teacher = freeze(teacher())
        Trainer(callbacks=[distillation()], **settings, **quiet).fit(own, toys.Loader(batches()))
        Trainer(**settings, **quiet).fit(toys.offline(), toys.data())
        warnings.warn("news", stacklevel=1)
    return caplog.text, [str(warning.message) for warning in caught]


def test_one_call_hides_what_is_no_news(tmp_path, caplog):
    warnings.simplefilter("always")
    logged, warned = messages(tmp_path, caplog)
    assert "Tip" in logged
    assert [each for each in warned if "in eval mode" in each]
    hide_expected_messages()
    hide_expected_messages()
    logged, warned = messages(tmp_path, caplog)
    assert "Tip" not in logged
    assert "Trainer.fit" in logged
    assert [each for each in warned if "the teacher gives" not in each and "num_workers" not in each] == ["news"]
