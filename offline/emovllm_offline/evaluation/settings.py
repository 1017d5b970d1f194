"""How an evaluation or a calibration is run, for programs: what they mostly leave as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from emovllm_offline.evaluation.choice import Bounds
from emovllm_offline.evaluation.further import Further
from emovllm_offline.evaluation.plan import MAX_TOKENS, METHODS


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What `evaluate`, `calibrate` and `measure_side_effects` have in common.

    style: the prompts that ask for an emotion, and the neutral one: a packaged style's name, or a file. max_tokens: of
    a reply. concurrency: requests at a time. engine_args: further arguments of `vllm serve`. seed: of bootstrap and
    samples. fresh: forget what the results' folder holds.
    """

    style: str | Path = "paper"
    max_tokens: int = MAX_TOKENS
    concurrency: int = 64
    engine_args: tuple[str, ...] = ()
    seed: int = 0
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(RunSettings):
    """methods: what is compared. paper_way: prompts on which the paper's way is timed, 0 for none; not with a server.
    probe: what the judge `readout` reads with, and targets go by, a file or its folder (default: the probe in the
    circuit's folder); not with a server. further: fields of requests by the circuit methods, such as `{"fading":
    {"emotion_schedule": {"hold": 20, "half_life": 40}}}`, each a condition beside the plain strengths.

    Those of every run: style, max_tokens, concurrency, engine_args, seed, fresh.
    """

    methods: tuple[str, ...] = METHODS
    paper_way: int = 6
    probe: str | Path | None = None
    further: Further = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(RunSettings):
    """bounds: of fluency and repetition. scopes: those to try too (none: the circuit's own alone).

    Those of every run: style, max_tokens, concurrency, engine_args, seed, fresh.
    """

    bounds: Bounds = Bounds()
    scopes: tuple[str, ...] = ()
