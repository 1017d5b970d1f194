"""What the engine must equal."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from emovllm.circuit import load_circuit
from emovllm.emotion import resolve
from emovllm_offline.control import Control
from harness import Ask, Reply


class Oracle:
    """Hugging Face with hooks, in float32, one request at a time; remembers what it was asked."""

    def __init__(self, model: str, circuit: Path) -> None:
        self.circuit = load_circuit(circuit)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._control = Control(loaded, self.circuit)
        self._known: dict[str, Reply] = {}

    def generate(self, asks: list[Ask], max_tokens: int) -> list[Reply]:
        return [self._one(ask, max_tokens) for ask in asks]

    def _one(self, ask: Ask, max_tokens: int) -> Reply:
        key = f"{ask} {max_tokens}"
        if key not in self._known:
            emotion = resolve(ask.fields, self.circuit.spec)
            self._known[key] = Reply(*self._control.generate(ask.prompt, emotion, max_tokens))
        return self._known[key]
