"""Log-probabilities of replies under a local model: each prompt is read once, then all its replies in batches.

An engine's `prompt_logprobs` would read every prompt with every reply again, and compute the vocabulary's scores for
each of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from emovllm_offline.model.decoder import repeat_cache
from emovllm_offline.model.load import fastest_device, load_network

# Replies in one forward: their scores over a large vocabulary are what takes the memory.
BATCH = 16
# Heads of prompts that are remembered.
HEADS = 4


class Likelihoods:
    """A Hugging Face causal language model, unsteered."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._heads: dict[tuple[int, ...], DynamicCache] = {}

    @classmethod
    def load(cls, folder: str, device: str | None = None) -> Likelihoods:
        """In the model's own floating-point type; on a CPU in float32, which is exact and mostly faster there.

        Raises: as `load_network`.
        """
        device = device or fastest_device()
        return cls(load_network(folder, "float32" if device == "cpu" else "auto", device))

    @property
    def network(self) -> Any:
        return self._model

    def means(self, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
        """Mean negative log-probability of each reply's tokens after the prompt, in nats; no reply is empty."""
        totals = self.totals(prompt, replies)
        return [-total / len(reply) for total, reply in zip(totals, replies, strict=True)]

    @torch.inference_mode()
    def totals(self, prompt: Sequence[int], replies: Sequence[Sequence[int]], head: int = 0) -> list[float]:
        """Log-probability of each reply after the prompt, in nats; no reply is empty.

        head: so many of the prompt's first tokens, but not all, begin other prompts too: they are read once.
        """
        read = self._read(prompt[head:], self._begun(tuple(prompt[:head])))
        order = sorted(range(len(replies)), key=lambda i: len(replies[i]))
        out = [0.0] * len(replies)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            cache = repeat_cache(read.past_key_values, len(chosen))
            totals = self._batch(len(prompt), read.logits[:, -1:], cache, [replies[i] for i in chosen])
            for i, total in zip(chosen, totals, strict=True):
                out[i] = total
        return out

    def _begun(self, head: tuple[int, ...]) -> DynamicCache:
        """What a prompt's head leaves behind, to be gone on from."""
        empty = DynamicCache(config=self._model.config)
        if not head:
            return empty
        if head not in self._heads:
            if len(self._heads) == HEADS:
                self._heads.clear()
            self._heads[head] = self._read(head, empty).past_key_values
        return repeat_cache(self._heads[head], 1)

    def _read(self, ids: Sequence[int], cache: DynamicCache) -> Any:
        past = cache.get_seq_length()
        device = next(self._model.parameters()).device
        return self._model(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(past, past + len(ids), device=device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _batch(
        self, prompt_len: int, first: Tensor, cache: DynamicCache, replies: Sequence[Sequence[int]]
    ) -> Iterator[float]:
        """first: the scores after the prompt, [1, 1, vocabulary]; cache: the prompt's, for each of the replies."""
        longest = max(map(len, replies))
        # Padding comes last, where a causal model lets nothing see it.
        ids = torch.tensor([[*reply, *[0] * (longest - len(reply))] for reply in replies], device=first.device)
        scores = first.expand(len(replies), 1, -1)
        if longest > 1:
            positions = torch.arange(prompt_len, prompt_len + longest - 1, device=first.device)[None]
            read = self._model(input_ids=ids[:, :-1], past_key_values=cache, position_ids=positions, use_cache=True)
            scores = torch.cat([scores, read.logits], 1)  # [replies, longest, vocabulary]
        known = scores.gather(2, ids[:, :, None])[:, :, 0].float()
        logprobs = known - torch.stack([row.float().logsumexp(-1) for row in scores])
        for row, reply in zip(logprobs, replies, strict=True):
            yield float(row[: len(reply)].sum())
