"""What a decoder layer hands on: the residual stream in two parts, or whole beside a residual that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emovllm.engine.layers import parts, takes_residual
from emovllm.errors import Unsupported


class Whole:
    def forward(self, hidden_states: Any) -> Any:
        return hidden_states


class Carrying:
    def forward(self, hidden_states: Any, residual: Any) -> Any:
        if residual is None:
            residual = hidden_states
        else:
            hidden_states = hidden_states + residual
        return hidden_states, residual


class Overwriting:
    def forward(self, positions: Any, hidden_states: Any, residual: Any, **kwargs: Any) -> Any:
        residual = hidden_states  # what it was given is of no use
        return residual + positions, residual


class Unused:
    def forward(self, hidden_states: Any, residual: Any) -> Any:
        return hidden_states, None


@pytest.mark.parametrize(
    ("layer", "carried"), [(Whole, False), (Carrying, True), (Overwriting, False), (Unused, False)]
)
def test_a_residual_counts_where_the_layer_reads_it(layer: type, carried: bool) -> None:
    assert takes_residual(layer) is carried


def test_vllms_own_layers_are_told_apart() -> None:
    from vllm.model_executor.models.commandr import CohereDecoderLayer
    from vllm.model_executor.models.exaone4 import Exaone4DecoderLayer
    from vllm.model_executor.models.gpt2 import GPT2Block
    from vllm.model_executor.models.llama import LlamaDecoderLayer
    from vllm.model_executor.models.stablelm import StablelmDecoderLayer

    assert takes_residual(LlamaDecoderLayer)
    assert not any(map(takes_residual, (CohereDecoderLayer, Exaone4DecoderLayer, GPT2Block, StablelmDecoderLayer)))


def test_a_layer_whose_source_is_not_there_is_refused() -> None:
    space: dict[str, Any] = {}
    exec(
        "class Hidden:\n    def forward(self, hidden_states, residual):\n        return hidden_states, residual\n",
        space,
    )
    with pytest.raises(Unsupported, match=r'Hidden: its source cannot be read .* start without "steering"'):
        takes_residual(space["Hidden"])


def test_the_parts_of_the_stream() -> None:
    hidden, residual = torch.ones(2), torch.zeros(2)
    assert parts(None, hidden, carried=False) == (hidden, None)
    assert parts(None, (hidden, residual), carried=True) == (hidden, residual)
    assert parts(None, (hidden, residual), carried=False) == (hidden, None)
    assert parts(None, (hidden, None), carried=False) == (hidden, None)
    for output, carried in (((hidden, None), True), ((hidden, residual, residual), False), ({"hidden": hidden}, False)):
        with pytest.raises(Unsupported, match="it returns neither the residual stream nor its two parts"):
            parts(None, output, carried)
