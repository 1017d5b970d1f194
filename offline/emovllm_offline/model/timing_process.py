"""Hugging Face generate with hooks, as the paper did it: what users come from, for `emovllm bench` to measure.

    python -m emovllm_offline.model.timing_process '{"model": ..., "circuit": ..., "dtype": ..., "random_weights": ...}'

Driven by JSON lines: {"prompts": [[token ids]], "fields": [{emotion fields}], "output_tokens": n} gives {"seconds",
"arrivals": [[seconds from submission, of each token]]} or {"error": text}. Several prompts, of one length and with one
emotion, make a static batch; one prompt at a time is the paper's way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from emovllm.answering import Answer, answer_lines
from emovllm.circuit_files import load_circuit
from emovllm.fields import resolve
from emovllm_offline.model.control import Control
from emovllm_offline.model.load import fastest_device, load_network, random_network


class Baseline:
    """A model with a circuit's hooks."""

    def __init__(self, model: str, circuit: str, dtype: str = "auto", random_weights: bool = False) -> None:
        """`random_weights`: of the model's shape, where it has no weights; they do not matter to the speed."""
        network = random_network if random_weights else load_network
        self.model = network(model, dtype, fastest_device())
        # Many models ship sampling or a repetition penalty as their defaults, which Transformers would mix in.
        self.model.generation_config = GenerationConfig()
        self.circuit = load_circuit(circuit)
        self._control = Control(self.model, self.circuit)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], fields: dict[str, Any], output_tokens: int
    ) -> tuple[list[list[int]], list[float]]:
        """Greedy, with nothing to end it early; prompts of one length.

        Returns: the new tokens of each prompt, and when each came, in seconds.
        """
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
        times: list[float] = []
        start = time.perf_counter()

        def clock(tokens: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            """Called after each token; a criterion that never stops."""
            if tokens.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

        limits = GenerationConfig(max_new_tokens=output_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        with self._control.emotion(resolve(fields, self.circuit.spec), ids.shape[1]):
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=limits, stopping_criteria=[clock]
            )
        return out[:, ids.shape[1] :].tolist(), times

    def measure(
        self, prompts: list[list[int]], fields: list[dict[str, Any]], output_tokens: int, one_by_one: bool = False
    ) -> dict[str, Any]:
        if any(asked != fields[0] for asked in fields):
            raise ValueError("a static batch has one emotion")
        self.generate([prompts[0][:8]], fields[0], 4)  # untimed: wakes up what slept
        start = time.perf_counter()
        groups = [[prompt] for prompt in prompts] if one_by_one else [prompts]
        arrivals = []
        for group in groups:
            _, times = self.generate(group, fields[0], output_tokens)
            arrivals += [times] * len(group)
        return {"seconds": time.perf_counter() - start, "arrivals": arrivals}


def start(**arguments: Any) -> tuple[dict[str, Any], Answer]:
    baseline = Baseline(**arguments)
    return {"device": baseline.model.device.type, "threads": torch.get_num_threads()}, baseline.measure


if __name__ == "__main__":
    answer_lines(start)
