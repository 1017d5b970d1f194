"""Judges that are models behind an OpenAI-compatible endpoint. They see the reply, never the user's message."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emovllm.errors import EmovllmError, FilteredByEndpoint, JudgeError, RefusedByEndpoint, UnusableJudge
from emovllm.readout import NEUTRAL
from emovllm_offline.endpoint.answer import ROOMS, Answer, json_objects
from emovllm_offline.judges.blind import blind_labels
from emovllm_offline.judges.judge import EMPTY_REPLY, Verdict, in_order, judge, option

if TYPE_CHECKING:
    from emovllm_offline.endpoint.client import Chat, Endpoint, Messages

TOLD = """You assess the style of short texts. You get a target emotion and a text. Decide whether the text is written \
in the style of that emotion: its tone, its attitude and its choice of words are those of someone who feels it now.
Judge how the text is written, not whether what it reports is good or bad: bad news can be told happily, and good news \
angrily. A text that is even-tempered, that only mentions the emotion, or that expresses another one does not match.
Answer with one JSON object: {"match": 1 or 0, "reason": "at most fifteen words"}."""

LABELLING = """You assess the style of short texts. Decide which one of these labels names the emotion in whose style \
the text is written: %s. The style is its tone, its attitude and its choice of words: what someone feels who writes so.
Judge how the text is written, not whether what it reports is good or bad: bad news can be told happily, and good news \
angrily. Choose %s for a text that is even-tempered. Choose exactly one label, the strongest."""
BLIND = f'{LABELLING}\nAnswer with one JSON object: {{"label": "the label", "reason": "at most fifteen words"}}.'

REMINDER = "That is not the JSON object that was asked for. Answer with that object alone."
ATTEMPTS = 3
# Enough for the object, after the thinking of a model that thinks (`endpoint.ROOMS`).
MAX_TOKENS = 200
# Texts without a valid verdict after which a model that has given none at all is taken for no judge.
PATIENCE = 8


@dataclass(frozen=True, slots=True)
class Options:
    """model, base_url: as its endpoint has them; concurrency: requests at a time."""

    model: str | None = option(
        None, "the judge's model: its name at its endpoint; for hf and llm a folder or id", metavar="M"
    )
    base_url: str | None = option(None, "the judge's OpenAI-compatible endpoint (default: OpenAI's)", metavar="URL")
    concurrency: int = option(8, "requests at a time", flag=None)

    def endpoint(self, name: str) -> Endpoint:
        """Raises: JudgeError where there is no model; EndpointError."""
        from emovllm_offline.endpoint.client import Endpoint

        if self.model is None:
            raise UnusableJudge(f"--judge {name} needs --judge-model")
        return Endpoint(self.model, self.base_url, concurrency=self.concurrency)


@judge("openai", "a model that is told the emotion", Options)
def make_told(emotions: Sequence[str], options: Options) -> OpenAIJudge:
    """Raises: JudgeError, EndpointError."""
    return OpenAIJudge(options.endpoint("openai"))


@judge("openai-blind", "a model that is not told the emotion", Options)
def make_blind(emotions: Sequence[str], options: Options) -> BlindOpenAIJudge:
    """Raises: JudgeError, EndpointError."""
    return BlindOpenAIJudge(options.endpoint("openai-blind"), emotions)


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
        self._format = {
            "type": "json_schema",
            "json_schema": {
                "name": "verdict",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {**answer, "reason": {"type": "string"}},
                    "required": [*answer, "reason"],
                    "additionalProperties": False,
                },
            },
        }
        self._verdicts = 0
        self._failures: list[EmovllmError] = []

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """A text that a filter refuses, or on which the model gives no valid verdict, is not judged.

        Raises: JudgeError or RefusedByEndpoint where the model has not given one valid verdict yet; EndpointError.
        """
        return in_order(self, texts, targets)

    def judge_each(self, texts: Sequence[str], targets: Sequence[str], done: Callable[[int, Verdict], None]) -> None:
        """As `judge`; `done` is given each verdict as it comes, with the place of its text."""
        self._endpoint.map(self._ask, list(zip(texts, targets, strict=True)), done)
        if self._failures and not self._verdicts:
            raise self._failures[0]

    async def _ask(self, chat: Chat, question: tuple[str, str]) -> Verdict:
        text, target = question
        if not text.strip():
            return EMPTY_REPLY
        try:
            verdict = await self._verdict_of(chat, text, target)
        except FilteredByEndpoint as error:
            return Verdict.unjudged(str(error))
        except (RefusedByEndpoint, JudgeError) as error:
            if not self._verdicts:
                self._failures.append(error)
                if len(self._failures) >= PATIENCE:
                    raise
            return Verdict.unjudged(str(error))
        self._verdicts += 1
        return verdict

    async def _verdict_of(self, chat: Chat, text: str, target: str) -> Verdict:
        """Raises: JudgeError where the model gives no valid answer; EndpointError."""
        question = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": self._question(text, target)},
        ]
        messages: Messages = question
        model, answer = self.config["model"], Answer("", "")
        for _ in range(ATTEMPTS):
            answer = await chat(
                messages,
                max_tokens=MAX_TOKENS,
                enough=lambda answer: self._read(answer, target) is not None,
                response_format=self._format,
            )
            verdict = self._read(answer, target)
            if verdict is not None:
                return verdict
            if answer.cut:
                raise JudgeError(f"{model} was cut off before its verdict, with {MAX_TOKENS + ROOMS[-1]} tokens to use")
            # At temperature 0 the same question would only meet the same answer.
            messages = [
                *question,
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": REMINDER},
            ]
        raise JudgeError(f"{model} gave no valid verdict in {ATTEMPTS} tries, at last: {answer.text[:200]!r}")

    def _read(self, answer: Answer, target: str) -> Verdict | None:
        """The verdict of an answer; None of one that has none, or several that differ: a draft is no verdict.

        Of an answer that was cut off, what stands at its head counts alone: what follows words may be a draft.
        """
        if answer.cut and not re.match(r"\s*(```\w*\s*)?\{", answer.text):
            return None
        verdicts = [self._verdict(found, target) for found in json_objects(answer.text)]
        valid = [verdict for verdict in verdicts if verdict is not None]
        return valid[0] if len({(verdict.match, verdict.label) for verdict in valid}) == 1 else None

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
    blind = True

    def __init__(self, endpoint: Endpoint, emotions: Sequence[str]) -> None:
        self._labels = blind_labels(emotions)
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
