"""Greedy replies of a model: in process, or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from emovllm.errors import FilteredByEndpoint
from emovllm_offline.data.prompts import PLAIN_STOP, has_template, messages, render
from emovllm_offline.data.styles import Frame
from emovllm_offline.endpoint.answer import FILTERED
from emovllm_offline.model.decoder import type_name

if TYPE_CHECKING:
    from torch import Tensor

    from emovllm_offline.endpoint.answer import Answer
    from emovllm_offline.endpoint.client import Chat, Endpoint

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """A user message in a frame that has no reply."""

    frame: Frame
    user: str


class Generation(NamedTuple):
    text: str
    finish_reason: str  # "stop", "length" where it was cut at the limit, or FILTERED


class Backend(Protocol):
    """Replies to questions by greedy decoding.

    config: what decides the replies besides the questions; chunk: how many questions are best asked at once.
    """

    config: Mapping[str, Any]
    chunk: int

    def given(self, question: Question) -> Hashable:
        """What the model is given for a question, as far as it is known here."""

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[Generation]: ...


class ModelBackend:
    """A Hugging Face causal language model in this process."""

    def __init__(self, model: Any, tokenizer: Any, model_id: str, batch_size: int = 16) -> None:
        self.config: Mapping[str, Any] = {"model": model_id, "dtype": type_name(model.dtype)}
        self.chunk = batch_size
        self._model = model
        self._tokenizer = tokenizer
        self._stops = stop_tokens(model, tokenizer)
        self._pad = pad_token(tokenizer, self._stops)
        self._plain = not has_template(tokenizer)

    def given(self, question: Question) -> Hashable:
        """Raises: PromptError."""
        return render(self._tokenizer, question.frame, question.user).ids

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[Generation]:
        """One batch, padded on the left: what generates are the last positions.

        Raises: PromptError.
        """
        import torch

        prompts = [render(self._tokenizer, frame, user).ids for frame, user in questions]
        ids, mask = padded(prompts, self._pad, self._model.device)
        settings = {"eos_token_id": sorted(self._stops) or None, "pad_token_id": self._pad}
        with torch.inference_mode(), generating(self._model, max_new_tokens=max_new_tokens, **settings):
            out = self._model.generate(ids, attention_mask=mask, do_sample=False)
        return [self._generation(row) for row in out[:, ids.shape[1] :].tolist()]

    def _generation(self, tokens: list[int]) -> Generation:
        end = next((i for i, token in enumerate(tokens) if token in self._stops), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        # A model without a chat template goes on with its user's next turn.
        reply, stopped, _ = text.partition(PLAIN_STOP) if self._plain else (text, "", "")
        return Generation(reply.strip(), "stop" if stopped or end is not None else "length")


def padded(prompts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left to one length, where what generates are the last positions: token ids, and 1 where
    there is no padding; both [prompts, longest]."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


@contextmanager
def generating(model: Any, **settings: Any) -> Iterator[None]:
    """While it lasts, `model.generate` goes by these settings of Transformers' `GenerationConfig` alone."""
    from transformers import GenerationConfig

    # Many models ship sampling or a repetition penalty as their defaults, which Transformers would mix in.
    theirs = model.generation_config
    model.generation_config = GenerationConfig(**settings)
    try:
        yield
    finally:
        model.generation_config = theirs


def pad_token(tokenizer: Any, stops: set[int]) -> int:
    """What prompts are padded with: any token will do, for the mask hides it."""
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None else min(stops, default=0)


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token with which the model may end a reply."""
    stops: set[int] = set()
    for owner in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        stops |= {ids} if isinstance(ids, int) else set(ids or ())
    return stops


class EndpointBackend:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        # Not the URL: where a model is served decides nothing, and is nobody else's business.
        self.config: Mapping[str, Any] = {"model": endpoint.model, "through": "endpoint"}
        self.chunk = 8 * endpoint.concurrency
        self._endpoint = endpoint
        # Whether the endpoint's template leaves the system's message out; None where that is not known yet.
        self._drops_system: bool | None = None

    def given(self, question: Question) -> Hashable:
        return json.dumps(messages(question.frame, question.user))

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[Generation]:
        """A reply that a content filter keeps back is empty. Raises: EndpointError."""
        answers = self._ask(questions, max_new_tokens)
        if self._drops_system is None:
            self._drops_system = self._sees_no_system(questions, answers)
            if self._drops_system:
                logger.warning("the endpoint drops the system message: its text heads the first message of the user")
                answers = self._ask(questions, max_new_tokens)
        return [
            Generation("", FILTERED) if answer is None else Generation(answer.text.strip(), answer.finish_reason)
            for answer in answers
        ]

    def _ask(self, questions: Sequence[Question], max_tokens: int, **options: Any) -> list[Answer | None]:
        """None: the content filter keeps it back."""

        async def one(chat: Chat, question: Question) -> Answer | None:
            told = messages(question.frame, question.user, merge_system=bool(self._drops_system))
            try:
                return await chat(told, max_tokens=max_tokens, **options)
            except FilteredByEndpoint:
                return None

        return self._endpoint.map(one, questions)

    def _sees_no_system(self, questions: Sequence[Question], answers: Sequence[Answer | None]) -> bool | None:
        """Asks one question with its instruction given twice: a template that shows it makes a longer prompt."""
        for question, answer in zip(questions, answers, strict=True):
            system = question.frame.system
            if system is None or answer is None or answer.prompt_tokens is None:
                continue
            twice = question.frame.model_copy(update={"system": f"{system}\n{system}"})
            (longer,) = self._ask([Question(twice, question.user)], max_tokens=1, enough=lambda answer: True)
            return None if longer is None else longer.prompt_tokens == answer.prompt_tokens
        return None
