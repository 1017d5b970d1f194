"""What the clients of a load run ask: requests of every kind of emotion, each with the reply that it must get."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

_WORDS = ["rain", "door", "bike", "letter", "garden", "train", "night", "river", "friend", "window", "music", "bread"]
_SCOPES = ("generation", "prompt_last", "all")


class NoReply(RuntimeError):
    """A request that should have been served and was not."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One streamed request: a route, its body, and the text that it must get."""

    route: str
    body: dict[str, Any]
    kind: str  # `plain`, `emotion`, `blend`
    expected: str = field(default="", compare=False)


def make(model: str, emotions: dict[str, float], count: int, tokens: int, seed: int) -> list[Ask]:
    """`count` different requests for replies of `tokens` tokens, in thirds: without an emotion, with one, with a blend.

    Args:
        emotions: the largest strength of each.
    """
    rng = random.Random(seed)
    prompts = [" ".join(rng.choices(_WORDS, k=rng.randint(1, 12))) for _ in range(max(1, count // 12))]
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": dict,
        "emotion": lambda: _one(rng, emotions),
        "blend": lambda: _blend(rng, emotions),
    }
    asks: dict[str, Ask] = {}
    names = list(kinds)
    for number in range(20 * count):
        kind = names[number % len(names)]
        ask = _ask(rng.choice(prompts), kind, kinds[kind](), model, tokens, chat=rng.random() < 0.5)
        asks.setdefault(json.dumps([ask.route, ask.body], sort_keys=True), ask)
        if len(asks) == count:
            break
    return list(asks.values())


def plain(ask: Ask) -> Ask:
    """The same request without its emotion."""
    body = {name: value for name, value in ask.body.items() if not name.startswith("emotion")}
    return Ask(ask.route, body, "plain")


def _ask(prompt: str, kind: str, fields: dict[str, Any], model: str, tokens: int, *, chat: bool) -> Ask:
    route = "/v1/chat/completions" if chat else "/v1/completions"
    asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    common = {"model": model, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return Ask(route, {**common, **asked, **fields}, kind)


def _one(rng: random.Random, emotions: dict[str, float]) -> dict[str, Any]:
    name = rng.choice(list(emotions))
    # Down to half of the recommended, for each reply to be told from the plain one.
    strength = rng.choice((-1, 1)) * math.floor(100 * rng.uniform(0.5, emotions[name])) / 100
    return {"emotion": name, "emotion_strength": strength, "emotion_scope": rng.choice(_SCOPES)}


def _blend(rng: random.Random, emotions: dict[str, float]) -> dict[str, Any]:
    names = rng.sample(list(emotions), min(len(emotions), rng.randint(2, 3)))
    return {"emotion": {name: round(rng.uniform(0.3, 1.0), 2) for name in names}}


def expect(url: str, asks: Sequence[Ask], watch: Callable[[Sequence[Ask]], Iterator[Ask]] = iter) -> list[Ask]:
    """The same requests with the replies that a server gives them one at a time, without those whose emotion changes
    nothing: their replies would not show whether it was applied. Raises: NoReply."""
    with httpx.Client(base_url=url, timeout=120) as client:

        def reply(ask: Ask) -> str:
            answer = client.post(ask.route, json={**ask.body, "stream": False})
            if answer.status_code != 200:
                raise NoReply(f"{ask.route}: {answer.status_code} {answer.text[:300]}")
            choice = answer.json()["choices"][0]
            return str(choice["message"]["content"] if "message" in choice else choice["text"])

        without: dict[str, str] = {}
        kept = []
        for ask in watch(asks):
            expected = reply(ask)
            bare = plain(ask)
            key = json.dumps([bare.route, bare.body], sort_keys=True)
            if key not in without:
                without[key] = reply(bare)
            if ask.kind == "plain" or expected != without[key]:
                kept.append(Ask(ask.route, ask.body, ask.kind, expected))
    return kept
