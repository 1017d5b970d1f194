"""Likelihoods of replies under a local model: each prompt is read once, then all its replies in batches.

An engine's `prompt_logprobs` would read every prompt with every reply again, and compute the vocabulary's scores for
each of its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from emovllm_offline.evaluation.folder import Likelihood, Session
from emovllm_offline.evaluation.plan import Key
from emovllm_offline.model.decoder import repeat_cache
from emovllm_offline.model.load import fastest_device, load_network

# Replies in one forward: their scores over a large vocabulary are what takes the memory.
BATCH = 16


class Question(NamedTuple):
    """One likelihood to ask for."""

    key: Key
    given: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class Likelihoods:
    """A Hugging Face causal language model, unsteered."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    @classmethod
    def load(cls, folder: str) -> Likelihoods:
        """In the model's own floating-point type; on a CPU in float32, which is exact and mostly faster there."""
        device = fastest_device()
        return cls(load_network(folder, "float32" if device == "cpu" else "auto", device))

    def answer(self, todo: Sequence[Question], done: Callable[[Likelihood], None]) -> Session:
        """Hands `done` each answer as it comes. Returns: how fast it went."""
        start = time.perf_counter()
        for prompt, questions in by_prompt(todo):
            means = self.means(prompt, [question.tokens for question in questions])
            for question, nll in zip(questions, means, strict=True):
                done(Likelihood(key=question.key, given=question.given, nll=nll))
        tokens = sum(len(question.tokens) for question in todo)
        seconds = time.perf_counter() - start
        return Session(phase="perplexity", requests=len(todo), tokens=tokens, seconds=seconds, busy=1.0)

    @torch.inference_mode()
    def means(self, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
        """Mean negative log-probability of each reply's tokens after the prompt, in nats; no reply is empty."""
        device = next(self._model.parameters()).device
        read = self._model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=True, logits_to_keep=1)
        order = sorted(range(len(replies)), key=lambda i: len(replies[i]))
        out = [0.0] * len(replies)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            cache = repeat_cache(read.past_key_values, len(chosen))
            means = self._batch(len(prompt), read.logits[:, -1:], cache, [replies[i] for i in chosen])
            for i, mean in zip(chosen, means, strict=True):
                out[i] = mean
        return out

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
        nll = torch.stack([row.float().logsumexp(-1) for row in scores]) - known
        for row, reply in zip(nll, replies, strict=True):
            yield float(row[: len(reply)].mean())


def by_prompt(todo: Sequence[Question]) -> Iterator[tuple[tuple[int, ...], list[Question]]]:
    """Questions of one prompt together, in the order in which prompts first come."""
    groups: dict[tuple[int, ...], list[Question]] = {}
    for question in todo:
        groups.setdefault(question.prompt, []).append(question)
    yield from groups.items()
