"""The checks, one after the other, on engines in processes of their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.errors import BenchError
from emovllm.progress import Bar
from emovllm_server.bench import machine
from emovllm_server.bench.engine import Engine, environment
from emovllm_server.verify import checks, plan
from emovllm_server.verify.checks import Reply, Timing, Verdict
from emovllm_server.verify.plan import Batch

_ENGINE = "emovllm_server.verify.engine_process"
_REFERENCE = "emovllm_offline.model.reference_process"
# FlashAttention takes no float32, and Triton's products are TF32 unless told otherwise.
FLOAT32 = {"TRITON_F32_DEFAULT": "ieee", "VLLM_FLOAT32_MATMUL_PRECISION": "highest"}
# Of a GPU, for each of two engines that are there at once.
_HALF = {"gpu_memory_utilization": 0.45}


@dataclass(frozen=True)
class Subject:
    """What is verified.

    argv: as the command got it. model, circuit: where they are. dtype, max_model_len: as vLLM's options say.
    """

    argv: list[str]
    model: str
    circuit: str
    dtype: str
    max_model_len: int | None


@dataclass
class Findings:
    """reference, engine: what they are, as their processes say."""

    subject: Subject
    rounds: int
    logs: Path
    machine: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)
    reference: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        judged = [verdict.passed for verdict in self.verdicts if verdict.passed is not None]
        return bool(judged) and all(judged)


@dataclass(frozen=True)
class Asked:
    """What engines are asked, and what Hugging Face replies to it."""

    mixed: Batch
    wanted: list[Reply]
    wanted_plain: list[Reply]
    prefix: Batch
    wanted_prefix: list[Reply]

    def of(self, emotional: bool, *several: Sequence[Reply]) -> list[list[Reply]]:
        """Of replies to the mixed batch, those to requests with an emotion, or without."""
        numbers = [number for number, fields in enumerate(self.mixed.fields) if bool(fields) == emotional]
        return [[replies[number] for number in numbers] for replies in several]


def verify(subject: Subject, rounds: int, logs: Path) -> Findings:
    """Raises: BenchError where there is no reference."""
    findings = Findings(subject, rounds, logs, {**machine.describe(), **machine.versions(), **machine.driver()})
    with Bar("verify", 4 if rounds else 3, unit="steps") as bar, contextlib.ExitStack() as running:
        bar.tell("replies of Hugging Face with hooks")
        arguments = {"model": subject.model, "circuit": subject.circuit, "dtype": subject.dtype}
        reference = Engine("reference", _REFERENCE, arguments, os.environ, logs / "reference.log")
        with contextlib.closing(reference):
            findings.reference = reference.about
            asked = ask_reference(reference, subject.max_model_len)
        findings.verdicts.append(checks.emotions_move(*asked.of(True, asked.wanted, asked.wanted_plain)))
        bar.advance()
        if trouble := _why_not_in_float32(reference.about):
            findings.verdicts.append(Verdict("exact in float32", None, f"not run: {trouble}"))
        elif subject.dtype != "float32":
            bar.tell("the engine in float32")
            if (engine := _start(findings, "float32", {"dtype": "float32"}, FLOAT32)) is not None:
                with contextlib.closing(engine):
                    findings.verdicts += in_float32(engine, asked)
        bar.advance()
        bar.tell("plain vLLM and the engine as they are served")
        _as_served(findings, asked, running, bar)
    return findings


def _why_not_in_float32(reference: dict[str, Any]) -> str | None:
    if reference["quantized"]:
        return "kernels of quantised weights may round what they are given, and take no float32"
    return None if reference["dtype"] == "float32" else "a copy in float32 does not fit into the memory that is free"


def _as_served(findings: Findings, asked: Asked, running: contextlib.ExitStack, bar: Bar) -> None:
    together = findings.reference["fits_twice"]
    changes = _HALF if together else {}
    float32 = findings.subject.dtype == "float32" and _why_not_in_float32(findings.reference) is None
    replies: list[Reply] = []
    seconds: dict[str, list[float]] = {}
    plain = None
    # In float32 the reference is the measure, and plain vLLM is there to be timed.
    if findings.rounds or not float32:
        if (plain := _start(findings, "plain", changes, {})) is None:
            return
        running.enter_context(contextlib.closing(plain))
        replies = _replies(plain, asked.mixed.plain())
        if not together:
            seconds = timed({"plain": plain}, asked, findings.rounds)
            plain.close()
    if (steered := _start(findings, "steered", changes, {})) is None:
        return
    running.enter_context(contextlib.closing(steered))
    findings.engine = steered.about
    if float32:
        findings.verdicts += in_float32(steered, asked)
    else:
        findings.verdicts += as_served(steered, asked, checks.difference(replies, asked.wanted_plain))
    findings.verdicts.append(checks.ranks(steered.about["ranks"], steered.about["tensor_parallel"]))
    if steered.about["quantization"] and steered.about["distances"]:
        findings.verdicts.append(checks.quantized_weights(steered.about["distances"]))
    bar.advance()
    if findings.rounds:
        bar.tell("time per token, plain and steered in turn")
        engines = {"idle": steered, "steered": steered, **({"plain": plain} if plain is not None and together else {})}
        seconds |= timed(engines, asked, findings.rounds)
        findings.verdicts.append(checks.cost(Timing(**seconds), together))
        bar.advance()


def in_float32(engine: Engine, asked: Asked) -> list[Verdict]:
    """Where nothing is lost to rounding: all that the engine does, held to the reference."""
    mixed = _replies(engine, asked.mixed)
    verdicts = [checks.exactness("exact in float32", mixed, asked.wanted)]
    replies, wanted = [], []
    for size in plan.batch_sizes(engine.about["max_num_seqs"]):
        replies += _replies(engine, asked.mixed.repeated(size))
        wanted += [asked.wanted[number % len(asked.wanted)] for number in range(size)]
    verdicts.append(checks.exactness("exact in every size of batch", replies, wanted))
    verdicts.append(_neighbours(engine, asked, mixed))
    return [*verdicts, _on_a_shared_prefix(engine, asked)]


def as_served(engine: Engine, asked: Asked, plain: checks.Difference) -> list[Verdict]:
    """In the type that is served. plain: how far plain vLLM is from the reference."""
    mixed = _replies(engine, asked.mixed)
    moved = checks.moved_by(*asked.of(True, asked.wanted, asked.wanted_plain))
    name = f"as exact as plain vLLM in {engine.about['dtype']}"
    return [
        checks.as_exact_as_plain(name, checks.difference(mixed, asked.wanted), plain, moved),
        _neighbours(engine, asked, mixed, rounding=plain.mean),
    ]


def timed(engines: dict[str, Engine], asked: Asked, rounds: int) -> dict[str, list[float]]:
    """Seconds per token after the first, of each round; the engines in turn, another first each round.

    engines: by what they do, `plain`, `idle` or `steered`.
    """
    about = next(iter(engines.values())).about
    size = min(plan.TIMED_REQUESTS, about["max_num_seqs"])
    length = min(plan.TIMED_PROMPT, about["max_model_len"] - plan.TIMED_OUTPUT - 1)
    emotional = [fields for fields in asked.mixed.fields if fields]
    prompts = [(prompt * length)[:length] for prompt in asked.mixed.repeated(size).prompts]
    steered = Batch(prompts, [emotional[number % len(emotional)] for number in range(size)])
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        first = number % len(engines)
        for name in [*engines, *engines][first : first + len(engines)]:
            batch = steered if name == "steered" else steered.plain()
            arrivals = engines[name].ask({**batch.request(plan.TIMED_OUTPUT), "scored": False})["arrivals"]
            if number:  # the first round wakes up what slept
                seconds[name].append(float(np.mean([(times[-1] - times[0]) / (len(times) - 1) for times in arrivals])))
    return seconds


def ask_reference(reference: Engine, max_model_len: int | None) -> Asked:
    longest = min(filter(None, (reference.about["longest"], max_model_len)))
    *prompts, shared = reference.ask({"lengths": [*plan.lengths(longest), plan.prefix_length(longest)]})["prompts"]
    emotions = reference.about["emotions"]
    mixed = Batch(prompts, plan.mixed_fields(emotions))
    fields = plan.prefix_fields(emotions)
    prefix = Batch([shared] * len(fields), fields)
    wanted, plain, wanted_prefix = (_read(reference.ask(one.request())) for one in (mixed, mixed.plain(), prefix))
    return Asked(mixed, wanted, plain, prefix, wanted_prefix)


def _neighbours(engine: Engine, asked: Asked, mixed: list[Reply], rounding: float = 0.0) -> Verdict:
    alone, again = (_replies(engine, asked.mixed.plain()) for _ in range(2))
    together, alone, again = asked.of(False, mixed, alone, again)
    return checks.neighbours(together, alone, again, rounding)


def _on_a_shared_prefix(engine: Engine, asked: Asked) -> Verdict:
    replies, hits = [], 0
    for number, (prompt, fields) in enumerate(zip(asked.prefix.prompts, asked.prefix.fields, strict=True)):
        answer = engine.ask({**Batch([prompt], [fields]).request(), "reset": number == 0})
        replies += _read(answer)
        hits += answer["hits"]
    shared = engine.about["prefix_caching"] and len(asked.prefix.prompts[0]) > engine.about["block_size"]
    return checks.shared_prefix(replies, asked.wanted_prefix, hits, bool(shared))


def _start(findings: Findings, name: str, changes: dict[str, Any], env: dict[str, str]) -> Engine | None:
    """None where the engine does not start, which is a finding too."""
    steered = name != "plain"
    arguments = {"argv": findings.subject.argv, "steered": steered, "changes": changes}
    try:
        return Engine(name, _ENGINE, arguments, {**environment(steered), **env}, findings.logs / f"{name}.log")
    except BenchError as error:
        findings.verdicts.append(Verdict("the engine starts", False, str(error)))
        return None


def _replies(engine: Engine, batch: Batch) -> list[Reply]:
    return _read(engine.ask(batch.request()))


def _read(answer: dict[str, Any]) -> list[Reply]:
    return [Reply(**reply) for reply in answer["replies"]]
