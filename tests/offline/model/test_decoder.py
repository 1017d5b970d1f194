"""How models are told apart."""

from __future__ import annotations

import pytest
import torch

from emovllm_offline.model.decoder import sampled_digest


# Places beyond 2^24 are not whole numbers in single precision: a projection of an 8B model has 2^26 entries.
@pytest.mark.parametrize("size", [1, 3, 2**12, 14336 * 4096])
def test_weights_are_sampled_from_the_first_entry_to_the_last(size: int) -> None:
    weight = torch.zeros(size, dtype=torch.int8)
    digests = {sampled_digest([weight])}
    for place in {0, size - 1}:
        weight.zero_()[place] = 1
        digests.add(sampled_digest([weight]))
    assert len(digests) == 1 + len({0, size - 1})
