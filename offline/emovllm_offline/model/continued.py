"""Replies of a given length: where the model would end one, it is kept from that and goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from emovllm_offline.data.prompts import PLAIN_STOP, has_template
from emovllm_offline.model.generate import generating, pad_token, padded, stop_tokens


class Continued(NamedTuple):
    """tokens: [replies, length]. ends: of how many tokens each would have been, `length` where it had not ended yet."""

    tokens: np.ndarray
    ends: np.ndarray


def continued(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    length: int,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> Continued:
    """Replies of `length` tokens to a batch of prompts, padded on the left.

    Up to its end a reply is what the model says; then the next best token is taken that is no special one.
    temperature: 0 for greedy decoding. seeds: of each reply, where it is sampled; what is drawn does not depend on the
    batch.
    """
    stops = stop_tokens(network, tokenizer)
    pad = pad_token(tokenizer, stops)
    ids, mask = padded(prompts, pad, network.device)
    endless = _Endless(stops, stops | set(tokenizer.all_special_ids), length, temperature, seeds[: len(prompts)])
    with torch.inference_mode(), generating(network, max_new_tokens=length, pad_token_id=pad):
        out = network.generate(
            ids, attention_mask=mask, do_sample=False, logits_processor=LogitsProcessorList([endless])
        )
    tokens = out[:, ids.shape[1] :].cpu().numpy()
    ends = endless.ends(len(prompts))
    if not has_template(tokenizer):
        ends = np.minimum(ends, [_next_turn(tokenizer, row.tolist()) for row in tokens])
    return Continued(tokens, ends)


class _Endless(LogitsProcessor):  # type: ignore[misc]
    """Takes scores to those whose best token is the one to take.

    To sample is to add Gumbel noise and take the best. So what is drawn where the end is not to be had has the
    distribution of the rest, and up to the end it is what would have been drawn anyway.
    """

    def __init__(
        self, stops: set[int], special: set[int], length: int, temperature: float, seeds: Sequence[int]
    ) -> None:
        self._stops, self._special = sorted(stops), sorted(special)
        self._length = length
        self._temperature = temperature
        self._random = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._step = 0
        self._ends: Tensor | None = None

    def ends(self, replies: int) -> np.ndarray:
        return np.full(replies, self._length) if self._ends is None else self._ends.cpu().numpy()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [replies, vocabulary]."""
        scores = scores.float()
        if self._temperature:
            noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=one) for one in self._random])
            scores = scores / self._temperature - noise.log().to(scores.device)
        if self._ends is None:
            self._ends = torch.full((len(scores),), self._length, device=scores.device)
        stops = self._mask(self._stops, scores)
        now = stops[scores.argmax(-1)] & (self._ends == self._length)
        self._ends = torch.where(now, self._step, self._ends)
        self._step += 1
        over = (self._ends < self._length)[:, None]
        return scores.masked_fill(stops | (over & self._mask(self._special, scores)), -torch.inf)

    @staticmethod
    def _mask(ids: Sequence[int], scores: Tensor) -> Tensor:
        mask = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        mask[[one for one in ids if one < len(mask)]] = True
        return mask


def _next_turn(tokenizer: Any, tokens: Sequence[int]) -> int:
    """How many tokens come before a model without a chat template goes on with its user's turn; all where it does
    not."""
    last = len(tokens)
    if PLAIN_STOP not in tokenizer.decode(tokens):
        return last
    first = 0  # the turn has not begun in so many tokens, and has in `last`
    while last - first > 1:
        middle = (first + last) // 2
        begun = PLAIN_STOP in tokenizer.decode(tokens[:middle])
        first, last = (first, middle) if begun else (middle, last)
    return first
