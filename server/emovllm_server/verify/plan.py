"""What an engine is asked, beside plain vLLM and Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OUTPUT_TOKENS = 24
# Of the mixed batch's prompts.
LENGTHS = (5, 17, 33, 64, 100, 200, 31, 32, 150, 70, 48, 90, 120, 15)
# Requests at once, up to which each power of two is tried: engines have a graph for each of several sizes.
LARGEST_BATCH = 64
# Of the prompt that is repeated across emotions: some blocks of the cache, of 128 tokens at most, and a rest.
PREFIX_TOKENS = 3 * 128 + 5
# Of the timed runs.
TIMED_REQUESTS, TIMED_PROMPT, TIMED_OUTPUT = 8, 64, 32


@dataclass(frozen=True)
class Batch:
    """Requests that go to an engine at once. fields: the emotion fields of each."""

    prompts: list[list[int]]
    fields: list[dict[str, Any]]

    def plain(self) -> Batch:
        return Batch(self.prompts, [{} for _ in self.fields])

    def request(self, output_tokens: int = OUTPUT_TOKENS) -> dict[str, Any]:
        return {"prompts": self.prompts, "fields": self.fields, "output_tokens": output_tokens}

    def repeated(self, count: int) -> Batch:
        """The first `count` requests, from the beginning again where there are fewer."""
        order = [number % len(self.prompts) for number in range(count)]
        return Batch([self.prompts[i] for i in order], [self.fields[i] for i in order])


def mixed_fields(emotions: Sequence[str]) -> list[dict[str, Any]]:
    """As many as LENGTHS: each emotion, blends, a negative strength, every scope, and plain requests between."""
    names = [emotions[number % len(emotions)] for number in range(6)]
    first, last = names[0], names[-1]
    blend = {"emotion": {first: 0.7, last: 0.3}} if first != last else {"emotion": {first: 0.5}}
    return [
        {"emotion": names[0]},
        {},
        *({"emotion": name} for name in names[1:]),
        blend,
        {"emotion": first, "emotion_strength": -1.0},
        {},
        {"emotion": last, "emotion_scope": "prompt_last"},
        {"emotion": first, "emotion_scope": "all"},
        {},
        {"emotion": last, "emotion_scope": "generation", "emotion_strength": 0.5},
    ]


def prefix_fields(emotions: Sequence[str]) -> list[dict[str, Any]]:
    """Of one prompt, asked one after the other: what the cache holds of one must not reach the next."""
    first, last = emotions[0], emotions[-1]
    return [{"emotion": first}, {}, {"emotion": last}, {"emotion": first, "emotion_strength": 0.5}, {"emotion": first}]


def lengths(longest: int) -> list[int]:
    """Of the mixed batch's prompts in a model that takes `longest` tokens."""
    return [max(2, min(length, longest - OUTPUT_TOKENS - 1)) for length in LENGTHS]


def prefix_length(longest: int) -> int:
    return max(2, min(PREFIX_TOKENS, longest - OUTPUT_TOKENS - 1))


def batch_sizes(max_num_seqs: int) -> list[int]:
    sizes = [2**power for power in range(LARGEST_BATCH.bit_length())]
    return [size for size in sizes if size <= max_num_seqs]
