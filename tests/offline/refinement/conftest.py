"""The circuits that are refined."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from emovllm.circuit import Circuit
from emovllm_offline.data.sev import Record
from emovllm_offline.data.styles import Style
from emovllm_offline.discovery.discover import discover
from emovllm_offline.discovery.parameters import Parameters
from offline.conftest import tiny_model


@pytest.fixture(scope="session")
def circuit_of(tokenizer: PreTrainedTokenizerFast, records: list[Record], style: Style) -> Callable[[str], Circuit]:
    """Finds the circuit of a family's tiny model, once."""

    @cache
    def circuit_of(family: str) -> Circuit:
        parameters = Parameters(importance_prompts=1)
        return discover(tiny_model(family), tokenizer, records, [style], parameters=parameters, model_id="tiny")

    return circuit_of
