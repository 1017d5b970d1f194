"""Judges that are models behind an OpenAI-compatible endpoint. They see the reply, never the user's message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from emovllm.errors import JudgeError, RefusedByEndpoint
from emovllm_offline.judges.endpoint import Chat, Endpoint, Messages
from emovllm_offline.judges.judge import NEUTRAL, Verdict

TOLD = """You assess the style of short texts. You get a target emotion and a text. Decide whether the text is written \
in the style of that emotion: its tone, its attitude and its choice of words are those of someone who feels it now.
Judge how the text is written, not whether what it reports is good or bad: bad news can be told happily, and good news \
angrily. A text that is even-tempered, that only mentions the emotion, or that expresses another one does not match.
Answer with one JSON object: {"match": 1 or 0, "reason": "at most fifteen words"}."""

BLIND = """You assess the style of short texts. Decide which one of these labels names the emotion in whose style the \
text is written: %s. The style is its tone, its attitude and its choice of words: what someone feels who writes so.
Judge how the text is written, not whether what it reports is good or bad: bad news can be told happily, and good news \
angrily. Choose %s for a text that is even-tempered. Choose exactly one label, the strongest.
Answer with one JSON object: {"label": "the label", "reason": "at most fifteen words"}."""

REMINDER = "That is not the JSON object that was asked for. Answer with that object alone."
ATTEMPTS = 3
# Enough for the object; what a judge goes on to say is not read.
MAX_TOKENS = 200


class _ModelJudge:
    """What the two have in common: one question per text, answered by a JSON object."""

    name: str

    def __init__(self, endpoint: Endpoint, system: str, answer: Mapping[str, Any]) -> None:
        self.config: Mapping[str, Any] = {
            "model": endpoint.model,
            "prompt": hashlib.sha256(system.encode()).hexdigest(),
        }
        self._endpoint = endpoint
        self._system = system
        schema = {
            "type": "object",
            "properties": {**answer, "reason": {"type": "string"}},
            "required": [*answer, "reason"],
            "additionalProperties": False,
        }
        # From the strictest that a server may know to none.
        self._formats: list[dict[str, Any]] = [
            {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}},
            {"type": "json_object"},
            {},
        ]

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """Raises: JudgeError where the model gives no valid answer; EndpointError."""
        return self._endpoint.map(self._ask, list(zip(texts, targets, strict=True)))

    async def _ask(self, chat: Chat, asked: tuple[str, str]) -> Verdict:
        text, target = asked
        if not text.strip():
            return Verdict(False, None, "empty reply")
        messages = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": self._question(text, target)},
        ]
        answer = ""
        for _ in range(ATTEMPTS):
            answer = await self._answer(chat, messages)
            verdict = self._verdict(first_object(answer), target)
            if verdict is not None:
                return verdict
            # At temperature 0 the same question would only meet the same answer.
            messages = [*messages[:2], {"role": "assistant", "content": answer}, {"role": "user", "content": REMINDER}]
        raise JudgeError(f"{self.config['model']} gave no valid verdict in {ATTEMPTS} tries, at last: {answer[:200]!r}")

    async def _answer(self, chat: Chat, messages: Messages) -> str:
        while True:
            formats = self._formats
            options = {"response_format": formats[0]} if formats[0] else {}
            try:
                answer, _ = await chat(messages, max_tokens=MAX_TOKENS, **options)
                return answer
            except RefusedByEndpoint:
                if len(formats) == 1:
                    raise
                # Another question at the same time may already have stepped down.
                if self._formats is formats:
                    self._formats = formats[1:]

    def _question(self, text: str, target: str) -> str:
        raise NotImplementedError

    def _verdict(self, answer: Mapping[str, Any], target: str) -> Verdict | None:
        """None for an answer that is not valid."""
        raise NotImplementedError


class OpenAIJudge(_ModelJudge):
    """Is told the target emotion and asked whether the text's style matches (the protocol of arXiv 2510.11328).

    It is told what to look for, and measures neither relevance nor coherence.
    """

    name = "openai"

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, TOLD, {"match": {"type": "integer", "enum": [0, 1]}})

    def _question(self, text: str, target: str) -> str:
        return f"Target emotion: {target}\nText:\n{text}"

    def _verdict(self, answer: Mapping[str, Any], target: str) -> Verdict | None:
        if answer.get("match") not in (0, 1):
            return None
        return Verdict(bool(answer["match"]), None, str(answer.get("reason", "")))


class BlindOpenAIJudge(_ModelJudge):
    """Must choose among the emotions and neutral, without being told the target."""

    name = "openai-blind"

    def __init__(self, endpoint: Endpoint, emotions: Sequence[str]) -> None:
        # Sorted: the order in which a style names its emotions must not decide the answers.
        self._labels = (*sorted({*emotions} - {NEUTRAL}), NEUTRAL)
        super().__init__(
            endpoint,
            BLIND % (", ".join(self._labels), NEUTRAL),
            {"label": {"type": "string", "enum": list(self._labels)}},
        )

    def _question(self, text: str, target: str) -> str:
        return f"Text:\n{text}"

    def _verdict(self, answer: Mapping[str, Any], target: str) -> Verdict | None:
        label = str(answer.get("label", "")).strip().lower()
        if label not in self._labels:
            return None
        return Verdict(label == target, label, str(answer.get("reason", "")))


def first_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text, which may have words around it; {} where there is none."""
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        start = text.find("{", start + 1)
    return {}
