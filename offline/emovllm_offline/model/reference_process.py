"""Hugging Face with hooks, for `emovllm verify` to compare an engine with.

    python -m emovllm_offline.model.reference_process '{"model": ..., "circuit": ..., "dtype": ...}'

Driven by JSON lines: {"lengths": [n, ...]} gives {"prompts": [[token ids]]}, of prose; {"prompts": [[token ids]],
"fields": [{emotion fields}], "output_tokens": n} gives {"replies": [{"tokens", "logprobs"}]}, greedy, one request at a
time; and {"error": text} where that fails.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from emovllm.answering import Answer, answer_lines
from emovllm.circuit_files import load_circuit
from emovllm.emotion import METHODS
from emovllm.errors import PromptError
from emovllm.fields import resolve
from emovllm_offline.model.control import Control
from emovllm_offline.model.decoder import type_name
from emovllm_offline.model.load import context_of, fastest_device, load_network, load_tokenizer

# Beside the weights: activations, an engine's cache, what another process holds.
_SPARE_BYTES = 3 * 2**30

PROSE = (
    "On day {n} the neighbours asked me to look after their {what} while everybody else went down to the river. I "
    "wrote down who had left, closed the gate behind the last one, and sat on the step with a cup of tea. Around noon "
    "a van stopped at number {n}; the driver unloaded {n} boxes, checked a list, and drove off towards the bridge. "
)
_THINGS = ("dog", "bicycles", "garden", "old piano", "letters")


class Reference:
    """A model with a circuit's hooks."""

    def __init__(self, model: str, circuit: str, dtype: str = "auto") -> None:
        """dtype: of the weights; in float32 where a whole copy fits into the memory that is free, whatever it is."""
        # Products in TF32 are none of float32.
        torch.backends.cuda.matmul.allow_tf32 = False
        device = fastest_device()
        self._source = model
        self.parameters = count_parameters(model)
        self._quantized = getattr(AutoConfig.from_pretrained(model), "quantization_config", None) is not None
        float32 = fits(4 * self.parameters, device)
        spread = not float32 and device == "cuda" and torch.cuda.device_count() > 1
        network = load_network(model, "float32" if float32 else dtype, "auto" if spread else device)
        self.circuit = load_circuit(circuit)
        self._control = Control(network, self.circuit)

    def about(self) -> dict[str, Any]:
        network: Any = self._control.model
        return {
            "parameters": self.parameters,
            # Of two engines, in 16 bits.
            "fits_twice": fits(2 * 2 * self.parameters, network.device.type),
            "quantized": self._quantized,
            "longest": context_of(network.config),
            "dtype": type_name(network.dtype),
            "device": network.device.type,
            "emotions": list(self.circuit.names),
        }

    def prompts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Prose of these many tokens, different for each; without a tokenizer, whatever tokens."""
        try:
            tokenizer = load_tokenizer(self._source)
        except (OSError, PromptError):
            generator = torch.Generator().manual_seed(0)
            vocabulary = self.circuit.spec.model.vocab_size
            return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
        texts = []
        for seed, length in enumerate(lengths):
            once = PROSE.format(n=3 + seed, what=_THINGS[seed % len(_THINGS)])
            ids = tokenizer(once, add_special_tokens=False)["input_ids"]
            texts.append((ids * (1 + length // len(ids)))[-length:])
        return texts

    def replies(
        self, prompts: Sequence[Sequence[int]], fields: Sequence[dict[str, Any]], output_tokens: int
    ) -> list[dict[str, Any]]:
        made = []
        for prompt, asked in zip(prompts, fields, strict=True):
            emotion = resolve(asked, self.circuit.spec, METHODS)
            tokens, logprobs = self._control.generate(prompt, emotion, output_tokens)
            made.append({"tokens": tokens, "logprobs": logprobs})
        return made


def count_parameters(model: str) -> int:
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in network.parameters())


def fits(weights: int, device: str) -> bool:
    """Whether so many bytes of weights, and what a model of them needs beside, fit into the memory that is free."""
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return weights * 1.2 + _SPARE_BYTES < free


def start(**arguments: Any) -> tuple[dict[str, Any], Answer]:
    reference = Reference(**arguments)

    def answer(**request: Any) -> dict[str, Any]:
        if "lengths" in request:
            return {"prompts": reference.prompts(**request)}
        return {"replies": reference.replies(**request)}

    return reference.about(), answer


if __name__ == "__main__":
    answer_lines(start)
