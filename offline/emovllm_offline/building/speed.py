"""How fast a model is on this machine, and how many tokens its prompts have: what a plan is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from emovllm_offline.building.costs import BATCH, REPLY_TOKENS
from emovllm_offline.building.inputs import Inputs
from emovllm_offline.building.obeyed import scenario
from emovllm_offline.building.parts import neutral_texts
from emovllm_offline.building.sizes import Counts, Speed
from emovllm_offline.commands.shared import EvaluationOptions
from emovllm_offline.data.prompts import render
from emovllm_offline.data.sev import expand
from emovllm_offline.data.styles import Frame, Style
from emovllm_offline.judges.judge import Judge
from emovllm_offline.judges.panel import PanelJudge
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load

# Tokens of a forward that is timed: first few, and more where those were quick.
FEW, MANY = (2, 32), (4, 64)
QUICK = 0.5  # seconds
# How often each is timed, at most, and twice at least, but for so many seconds: what else runs makes it slower, never
# faster, and the fastest time is the one that it disturbed least.
TIMES, LONG = 6, 4.0
REPLIES = 20
# What judges are timed on: the first by itself, and as many of the others as it was quick.
TEXTS = (
    "I cannot believe that they did this to you, after all the work that you put into it.",
    "That is good to know. You may want to bring a coat, for the evenings are cold there.",
    "Please leave the light on. I keep thinking that somebody stands behind the door.",
    "What a day! You have earned every bit of it, and I hope that you celebrate with all of them.",
    "It will not come back, and the house is so quiet now.",
    "Take that plate away from me, there is something moving in the sauce.",
    "You did what? I had no idea that this was even allowed!",
    "The shop opens at nine and closes at six, except on Sundays.",
    "I have told them three times. If they call again, they will hear from my lawyer.",
)
# Seconds from which on a figure counts: a clock gives none below.
LEAST = 1e-7


def judging_seconds(inputs: Inputs) -> tuple[float, ...]:
    """Makes every judge and asks it, so that one which cannot be made or asked fails now: the seconds that each takes
    for a text, a panel as if all of its members were asked about every one.

    Raises: as the judges.
    """
    concurrency, settings = EvaluationOptions().concurrency, inputs.settings
    made = (settings.judging.make(name, inputs.emotions, None, concurrency) for name in settings.judge)
    return tuple(_judging(judge, inputs.emotions[0]) for judge in made)


def _judging(judge: Judge, target: str) -> float:
    if isinstance(judge, PanelJudge):
        return sum(_judging(member, target) for member in judge.members)

    def seconds(texts: Sequence[str]) -> float:
        begun = time.perf_counter()
        judge.judge(texts, [target] * len(texts))
        return time.perf_counter() - begun

    # Some load on their first text.
    texts = TEXTS[1:2] if seconds(TEXTS[:1]) > LONG else TEXTS[1:]
    return seconds(texts) / len(texts)


def measure(inputs: Inputs, judging: tuple[float, ...]) -> tuple[Speed, Counts]:
    """Loads the model and times it. judging: of `judging_seconds`.

    Raises: UnsupportedModelError where the model has no place for a circuit; as `load`.
    """
    settings = inputs.settings
    begun = time.perf_counter()
    loaded = load(inputs.model, settings.loading.dtype, settings.loading.device)
    decoder = find_decoder(loaded.network)
    seconds = time.perf_counter() - begun
    return speed_of(decoder, seconds), counts_of(inputs, loaded.tokenizer, judging)


@torch.no_grad()
def speed_of(decoder: Decoder, load_seconds: float) -> Speed:
    token = _token(decoder, FEW)
    if token * FEW[0] * FEW[1] < QUICK:
        token = min(token, _token(decoder, MANY))
    # Each step takes a place after the prefix.
    limit = decoder.most_tokens(FEW[1] + TIMES + 1)
    prefix = decoder.prefix_cache(list(range(1, max(2, limit - TIMES - 1))))
    cache = repeat_cache(prefix, BATCH)
    ids = torch.ones(BATCH, 1, dtype=torch.long, device=decoder.device)
    step = _fastest(lambda: decoder.scores(ids, cache), decoder)
    return Speed(load_seconds, token, step, len(decoder.layers), decoder.hidden_size)


def _token(decoder: Decoder, shape: tuple[int, int]) -> float:
    """Seconds for a token of a forward of [batch, tokens]."""
    ids = torch.ones(shape[0], decoder.most_tokens(shape[1]), dtype=torch.long, device=decoder.device)
    return _fastest(lambda: decoder.forward(ids), decoder) / ids.numel()


def _fastest(work: Callable[[], Any], decoder: Decoder) -> float:
    """The least of several timings, in seconds. The first warms up, and is seldom it."""
    begun = time.perf_counter()
    fastest = min(_seconds(work, decoder), _seconds(work, decoder))
    for _ in range(TIMES - 2):
        if time.perf_counter() - begun > LONG:
            break
        fastest = min(fastest, _seconds(work, decoder))
    return max(fastest, LEAST)


def _seconds(work: Callable[[], Any], decoder: Decoder) -> float:
    begun = time.perf_counter()
    work()
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)
    return time.perf_counter() - begun


def counts_of(inputs: Inputs, tokenizer: Any, judging: tuple[float, ...]) -> Counts:
    """Tokens are those of the first scenario. Raises: PromptError."""
    user = expand(inputs.parts.learn[:1])[0].user
    texts = [text for example in inputs.written[:REPLIES] for text in example.replies.values()]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    held = [example for example in inputs.written if example.held_out]
    labelled = len(inputs.written) * len(inputs.emotions) + (len(neutral_texts()) if inputs.english else 0)
    forced = _frames(inputs.forced)
    return Counts(
        emotions=len(inputs.emotions),
        prompts={name: _prompt(tokenizer, style, user) for name, style in inputs.styles.items()},
        replies={name: len(_frames(style)) // len(style.emotions) for name, style in inputs.styles.items()},
        forced=round(sum(_tokens(tokenizer, frame, user) for frame in forced) / len(inputs.emotions)),
        message=_tokens(tokenizer, inputs.forced.neutral, user),
        reply=round(statistics.mean(lengths)) if lengths else REPLY_TOKENS,
        learn=len(inputs.parts.learn),
        choose=len(inputs.parts.choose),
        test=len(inputs.parts.test),
        written=len(inputs.written) - len(held),
        held=len({scenario(example.id) for example in held}),
        texts=labelled or len(inputs.parts.learn) * len(inputs.emotions),
        again=inputs.judged_by_words,
        judging=judging,
    )


def _frames(style: Style) -> list[Frame]:
    """Those that one item takes, in all emotions."""
    return [frame for name in style.emotions for frame in style.frames(name, 0)]


def _prompt(tokenizer: Any, style: Style, user: str) -> int:
    """Tokens of a prompt that asks for an emotion, on average."""
    asking = [frame.model_copy(update={"reply": None}) for frame in _frames(style)]
    return round(statistics.mean(_tokens(tokenizer, frame, user) for frame in asking))


def _tokens(tokenizer: Any, frame: Frame, user: str) -> int:
    return len(render(tokenizer, frame, user).ids)
