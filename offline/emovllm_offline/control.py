"""A circuit on a Hugging Face model, by forward pre-hooks: the method as published, unfolded.

This is the reference that the engine is tested against: one request at a time, the neurons' and heads' vectors added to
the inputs of the down and output projections (method section 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emovllm.circuit import Circuit
from emovllm.emotion import Emotion
from emovllm.sites import parse_site


class Control:
    """Applies a circuit's emotions to `model` while `emotion()` is entered."""

    def __init__(self, model: nn.Module, circuit: Circuit) -> None:
        """Raises: ValueError where the model lacks one of the circuit's sites."""
        self.model = model
        self.circuit = circuit
        parameter = next(model.parameters())
        wanted = set(circuit.sites())
        self._sites: list[tuple[nn.Module, Tensor]] = []
        for name, module in model.named_modules():
            site = parse_site(name)
            if site in wanted:
                delta = torch.from_numpy(circuit.site_delta(*site))  # [emotions, width]
                self._sites.append((module, delta.to(parameter.device, parameter.dtype)))
        if len(self._sites) != len(wanted):
            raise ValueError(f"the model has {len(self._sites)} of the circuit's {len(wanted)} sites")

    @contextmanager
    def emotion(self, emotion: Emotion | None, prompt_len: int) -> Iterator[None]:
        """Injects into every forward of one sequence, whose first forward begins at position 0.

        Args:
            emotion: what to inject; None for nothing.
            prompt_len: prompt tokens; the scopes count from it.
        """
        if emotion is None:
            yield
            return
        weights = torch.zeros(len(self.circuit.names))
        for name, weight in emotion.weights:
            weights[self.circuit.names.index(name)] = weight
        position = 0  # of the current forward's first token
        tokens = 0

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal position, tokens
            position += tokens
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            tokens = ids.shape[1]

        def inject(delta: Tensor) -> Any:
            vector = weights.to(delta) @ delta

            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                positions = torch.arange(position, position + tokens, device=delta.device)
                mask = injected(positions, emotion.scope, prompt_len)
                return (args[0] + mask[None, :, None] * vector, *args[1:])

            return hook

        handles = [self.model.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [module.register_forward_pre_hook(inject(delta)) for module, delta in self._sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def generate(
        self, prompt: Sequence[int], emotion: Emotion | None, max_new_tokens: int, stop: Sequence[int] = ()
    ) -> tuple[list[int], list[float]]:
        """Greedy decoding of one prompt.

        Returns: the new token ids, and the log-probability of each. Ends early after a token of `stop`.
        """
        tokens: list[int] = []
        logprobs: list[float] = []
        cache = None
        device = next(self.model.parameters()).device
        ids = torch.tensor([list(prompt)], device=device)
        with self.emotion(emotion, len(prompt)):
            while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop):
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                scores = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
                best = int(scores.argmax())
                tokens.append(best)
                logprobs.append(float(scores[best]))
                ids = torch.tensor([[best]], device=device)
        return tokens, logprobs


def injected(positions: Tensor, scope: str, prompt_len: int) -> Tensor:
    """Which absolute positions a scope injects (bool, like `positions`)."""
    if scope == "all":
        return torch.ones_like(positions, dtype=torch.bool)
    if scope == "prompt_last":
        return positions == prompt_len - 1
    return positions >= prompt_len - 1
