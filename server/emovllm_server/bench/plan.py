"""What is measured, in which order, with which prompts: plain data, the same for the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from emovllm.fields import resolve
from emovllm.spec import CircuitSpec

PLAIN_A, PLAIN_B, STEERED, HF = "plain A", "plain B", "steered", "hf"
NONE, ONE, MIXED, BLENDS = "none", "one", "mixed", "blends"
SCENARIOS = (NONE, ONE, MIXED, BLENDS)
# Distinct mixes of weights and strengths, over which a batch of the scenario `blends` cycles.
DISTINCT = 256
# Of the shared-prefix measurement: tokens of each request's own after the prefix, and generated ones.
TAIL_TOKENS = 16
TAIL_OUTPUT = 4

Measure = tuple[str, str]  # an engine, and a scenario on it


class Settings(BaseModel):
    """All that decides what is measured. `model`, `circuit` and `versions` only identify it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    circuit: str  # its digest
    versions: dict[str, str]
    batch_sizes: tuple[int, ...]
    rounds: int
    starts: int
    prompt_tokens: int
    output_tokens: int
    prefix_tokens: int
    prefix_requests: int = 16
    hf_rounds: int = 0  # of each start; 0: without Hugging Face
    seed: int = 0
    dtype: str = "auto"
    max_model_len: int
    engine_args: dict[str, Any] = {}
    env: dict[str, str] = {}

    def hf_batch_sizes(self) -> tuple[int, ...]:
        """One prompt at a time is the paper's way, and always among them."""
        return tuple(sorted({1, *self.batch_sizes}))


@dataclass(frozen=True, slots=True)
class Block:
    """Measurements one right after another, with the same prompts: what ratios are paired within."""

    start: int
    round: int
    batch_size: int
    order: tuple[Measure, ...]


def measures(settings: Settings, round_: int, batch_size: int) -> list[Measure]:
    engines: list[Measure] = []
    if batch_size in settings.batch_sizes:
        engines += [(PLAIN_A, NONE), (PLAIN_B, NONE), *((STEERED, scenario) for scenario in SCENARIOS)]
    if round_ < settings.hf_rounds:
        engines.append((HF, ONE))
    return engines


def blocks(settings: Settings, start: int) -> Iterator[Block]:
    """One start's blocks, batch sizes and measures in an order of its own in every round."""
    for round_ in range(settings.rounds):
        rng = np.random.default_rng([settings.seed, start, round_])
        sizes = settings.hf_batch_sizes() if round_ < settings.hf_rounds else settings.batch_sizes
        for size in rng.permutation(sizes).tolist():
            wanted = measures(settings, round_, size)
            order = tuple(wanted[i] for i in rng.permutation(len(wanted)))
            yield Block(start, round_, size, order)


def prompts(settings: Settings, block: Block, vocab_size: int) -> list[list[int]]:
    """A block's prompts: random token ids, so that no two blocks share a prefix worth caching."""
    rng = np.random.default_rng([settings.seed, block.start, block.round, block.batch_size])
    ids: list[list[int]] = rng.integers(0, vocab_size, (block.batch_size, settings.prompt_tokens)).tolist()
    return ids


def prefix_prompts(settings: Settings, start: int, vocab_size: int) -> list[list[int]]:
    """Prompts with one long beginning in common."""
    rng = np.random.default_rng([settings.seed, start])
    common = rng.integers(0, vocab_size, settings.prefix_tokens).tolist()
    tails = rng.integers(0, vocab_size, (settings.prefix_requests, TAIL_TOKENS)).tolist()
    return [common + tail for tail in tails]


def requests(scenario: str, count: int, circuit: CircuitSpec, seed: int = 0) -> list[dict[str, Any]]:
    """The emotion fields of a batch's requests."""
    names = [emotion.name for emotion in circuit.emotions]
    kinds: list[dict[str, Any]]
    if scenario == NONE:
        kinds = [{}]
    elif scenario == ONE:
        kinds = [{"emotion": names[0]}]
    elif scenario == MIXED:
        kinds = [{"emotion": name} for name in names]
    elif scenario == BLENDS:
        kinds = blends(circuit, seed)
    else:
        raise ValueError(f"no scenario {scenario}")
    return [kinds[i % len(kinds)] for i in range(count)]


def blends(circuit: CircuitSpec, seed: int = 0) -> list[dict[str, Any]]:
    """`DISTINCT` mixes of all emotions, each with a strength of its own; no two resolve to the same."""
    rng = np.random.default_rng([seed, DISTINCT])
    names = [emotion.name for emotion in circuit.emotions]
    found: dict[str, dict[str, Any]] = {}
    while len(found) < DISTINCT:
        shares = rng.dirichlet(np.ones(len(names))) * 0.98 + 0.02 / len(names)
        asked = {
            "emotion": {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)},
            # Within every circuit's limits: the weights sum to 1, and the maximal strength is at least 1.
            "emotion_strength": round(float(rng.uniform(0.25, 1.0)), 4),
        }
        resolved = resolve(asked, circuit)
        assert resolved is not None
        found[json.dumps(resolved.weights)] = asked
    return list(found.values())
