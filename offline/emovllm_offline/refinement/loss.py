"""How far a steered model is from replying as an example does, and as the plain model would if it were asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emovllm_offline.data.examples import Example
from emovllm_offline.data.prompts import has_template, messages, render, require_different
from emovllm_offline.data.styles import Frame, Style
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.generate import stop_tokens
from emovllm_offline.refinement.controls import ResidualVectors
from emovllm_offline.refinement.deltas import Deltas

# Of the anchor's predictions, the likeliest.
ANCHOR_TOKENS = 50


class Anchor:
    """What the plain model predicts at each token of a reply when the prompt asks for its emotion."""

    def __init__(
        self, decoder: Decoder, tokenizer: Any, emotions: Sequence[str], style: Style, numbers: dict[str, int]
    ) -> None:
        """numbers: which of the style's prompts a message takes, by its id."""
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._emotions = emotions
        self._style = style
        self._numbers = numbers
        self._known: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, example: Example, replies: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """For each reply the likeliest tokens, [tokens, k], and their share of the probability of these k."""
        if example.id not in self._known:
            prompts = [self._prompt(example, name) for name in self._emotions]
            require_different(prompts, self._style.name)
            self._known[example.id] = [
                self._predict(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)
            ]
        return self._known[example.id]

    def _prompt(self, example: Example, name: str) -> tuple[int, ...]:
        frame = self._style.frames(name, self._numbers[example.id])[0].model_copy(update={"reply": None})
        return render(self._tokenizer, frame, example.user).ids

    @torch.no_grad()
    def _predict(self, prompt: Sequence[int], reply: Sequence[int]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[*prompt, *reply[:-1]]], device=self._decoder.device)
        logits = self._decoder.scores(ids, last=len(reply))[0]
        values, tokens = logits.float().topk(min(ANCHOR_TOKENS, logits.shape[-1]))
        return tokens, values.softmax(-1)


class Loss:
    """How far the steered model is from replying as an example does."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        emotions: Sequence[str],
        deltas: Deltas | ResidualVectors,
        anchor: Anchor | None,
        share: float,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._emotions = emotions
        self._deltas = deltas
        self._anchor = anchor
        self._share = share

    def __call__(self, example: Example, frame: Frame) -> Tensor:
        """Mean per token of the reply in each emotion, its end included: [emotions].

        The prompt but for its last token is not injected, so that all emotions share its keys and values.
        """
        device = self._decoder.device
        prompt = render(self._tokenizer, frame, example.user).ids
        end = end_of_turn(self._decoder.model, self._tokenizer, frame, example.user)
        replies = [
            [*self._tokenizer(example.replies[name], add_special_tokens=False)["input_ids"], *end]
            for name in self._emotions
        ]
        longest = max(map(len, replies))
        # Padding comes last, where a causal model lets nothing see it.
        ids = torch.tensor(
            [[prompt[-1], *reply[:-1], *[0] * (longest - len(reply))] for reply in replies], device=device
        )
        with torch.no_grad():
            cache = self._decoder.prefix_cache(prompt[:-1])
        with self._deltas.injected(torch.arange(len(replies), device=device)):
            logits = self._decoder.scores(ids, repeat_cache(cache, len(replies)))
        anchors = self._anchor(example, replies) if self._anchor else [None] * len(replies)
        losses = [self._of(row, reply, anchor) for row, reply, anchor in zip(logits, replies, anchors, strict=True)]
        return torch.stack(losses)

    def _of(self, logits: Tensor, reply: Sequence[int], anchor: tuple[Tensor, Tensor] | None) -> Tensor:
        scores = logits[: len(reply)].float().log_softmax(-1)  # [tokens, vocabulary]
        loss = -scores.gather(1, torch.tensor(reply, device=scores.device)[:, None]).mean()
        if anchor is None:
            return loss
        tokens, shares = anchor
        theirs = -(shares * scores.gather(1, tokens)).sum(-1).mean()
        return (1 - self._share) * loss + self._share * theirs


def end_of_turn(model: Any, tokenizer: Any, frame: Frame, user: str) -> list[int]:
    """The token with which the chat template ends a reply; empty where none of the model's stop tokens does.

    Without a template, the tokenizer's end of text.
    """
    stops = stop_tokens(model, tokenizer)
    if not has_template(tokenizer):
        return [tokenizer.eos_token_id] if tokenizer.eos_token_id in stops else []
    chat = [*messages(frame, user, merge_system=True), {"role": "assistant", "content": "Yes."}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    return next(([token] for token in reversed(ids) if token in stops), [])
