"""Rows on their way to the device: always those of the last write; no buffer is filled while it is read."""

from __future__ import annotations

import numpy as np
import torch

from emovllm.engine.staging import Staging


def test_the_target_holds_what_was_written_last_and_zeros() -> None:
    random = np.random.default_rng(0)
    target = torch.zeros(16, 3)
    staging = Staging(target)
    for count in (5, 0, 0, 16, 2, 1, 7, 0, 3, 3, 12, 1):
        rows = random.permutation(16)[:count]
        values = random.standard_normal((count, 3)).astype(np.float32)
        staging.write(rows, values)
        expected = np.zeros((16, 3), np.float32)
        expected[rows] = values
        np.testing.assert_array_equal(target.numpy(), expected)


def test_a_buffer_is_filled_again_only_when_its_last_copy_is_done_and_none_is_made_after_the_start() -> None:
    log: list[tuple[str, int]] = []

    class Event:
        made = 0

        def __init__(self) -> None:
            self.number = Event.made
            Event.made += 1

        def synchronize(self) -> None:
            log.append(("wait", self.number))

        def record(self) -> None:
            log.append(("copied", self.number))

    staging = Staging(torch.zeros(4, 2), Event)
    addresses = [buffer.data_ptr() for buffer in staging._buffers]
    for step in range(4):
        staging.write(np.array([step]), np.ones((1, 2), np.float32))
    assert log == [(what, number) for number in (0, 1, 2, 0) for what in ("wait", "copied")]
    assert [buffer.data_ptr() for buffer in staging._buffers] == addresses
    assert len(set(addresses)) == 3
    staging.write(np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    log.clear()
    staging.write(np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    assert not log
