"""What own replies are sampled from, the served model, and what they are scored by, the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from emovllm import cpu
from emovllm.progress import ENGINE_START, ENGINE_START_HINT, stage
from emovllm_offline.data.examples import Example
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Style
from emovllm_offline.model.likelihood import Likelihoods
from emovllm_offline.model.load import load_tokenizer
from emovllm_offline.refinement.refine import FRAMES
from emovllm_offline.refinement.settings import Sampling


class Sample(BaseModel):
    """A reply that ended by itself; tokens: its ids without the one that ended it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    tokens: tuple[int, ...]


class Samples(BaseModel):
    """All samples of one message, by emotion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    replies: dict[str, tuple[Sample, ...]]


# Samples of a few messages, each with its number among all of them, which seeds it.
Sampler = Callable[[Sequence[tuple[int, Example]]], list[Samples]]
# Mean negative log-probabilities of replies (token ids) after the prompt that asks the message, by its number, for an
# emotion.
Scorer = Callable[[int, Example, str, Sequence[Sequence[int]]], list[float]]


def engine(folder: str, circuit: str | Path, names: Sequence[str], sampling: Sampling) -> Sampler:
    """A vLLM engine in processes of its own, which end with the sampler."""

    cpu.prepare()
    cpu.keep_small()
    with stage(ENGINE_START, hint=ENGINE_START_HINT):
        from vllm import LLM, SamplingParams, TokensPrompt

        llm = LLM(
            folder,
            # No sampling parameters of the model's own; blocks small enough for prompts to share them between emotions.
            generation_config="vllm",
            block_size=32,
            max_model_len=1024,
            dtype=cpu.dtype(),
            seed=0,
            additional_config={"emovllm": {"circuit": str(circuit)}},
        )
    tokenizer = load_tokenizer(folder)
    each = [(name, strength) for name in names for strength in sampling.strengths]

    def sample(some: Sequence[tuple[int, Example]]) -> list[Samples]:
        prompts, params = [], []
        for number, example in some:
            ids = list(render(tokenizer, FRAMES[0], example.user).ids)
            for at, (name, strength) in enumerate(each):
                prompts.append(TokensPrompt(prompt_token_ids=ids))
                params.append(
                    SamplingParams(
                        n=sampling.samples,
                        temperature=sampling.temperature,
                        max_tokens=sampling.max_tokens,
                        seed=number * len(each) + at,
                        extra_args={"emotion": name, "emotion_strength": strength},
                    )
                )
        outputs = iter(llm.generate(prompts, params, use_tqdm=False))
        rows = []
        for _, example in some:
            replies: dict[str, tuple[Sample, ...]] = dict.fromkeys(names, ())
            for name, _ in each:
                ended = [one for one in next(outputs).outputs if one.finish_reason == "stop"]
                replies[name] += tuple(Sample(text=o.text.strip(), tokens=tuple(o.token_ids[:-1])) for o in ended)
            rows.append(Samples(id=example.id, replies=replies))
        return rows

    return sample


def plain(folder: str, style: Style) -> Scorer:
    """The unsteered model, asked for the emotion in the style's words."""

    tokenizer, likelihoods = load_tokenizer(folder), Likelihoods.load(folder)

    def score(number: int, example: Example, emotion: str, replies: Sequence[Sequence[int]]) -> list[float]:
        frame = style.frames(emotion, number)[0].model_copy(update={"reply": None})
        return likelihoods.means(render(tokenizer, frame, example.user).ids, replies)

    return score
