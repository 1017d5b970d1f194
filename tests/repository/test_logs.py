"""Tests are alone with what they do to logging."""

from __future__ import annotations

import logging

import pytest


@pytest.mark.parametrize("time", ["first", "second"])
def test_warnings_are_heard_whatever_another_test_did_to_logging(time: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("emovllm_offline.model.any")
    logger.warning("the %s time", time)
    assert f"the {time} time" in caplog.text
    logging.root.setLevel(logging.ERROR)
    logging.disable(logging.CRITICAL)
    logger.disabled = True
    logging.getLogger("emovllm_offline").propagate = False
