"""Measures what a plan says and a record lacks: engines all alive at once, one measuring at a time."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import ExitStack, closing

from emovllm.errors import BenchError
from emovllm.progress import Bar
from emovllm.spec import CircuitSpec
from emovllm_server.bench.engine import Measuring
from emovllm_server.bench.plan import (
    BLENDS,
    HF,
    NONE,
    ONE,
    PLAIN_A,
    PLAIN_B,
    STEERED,
    TAIL_OUTPUT,
    Block,
    Settings,
    blocks,
    prefix_prompts,
    prompts,
    requests,
)
from emovllm_server.bench.record import PrefixHits, Record, timing

WARM_UP_TOKENS = 4
# The engines of the shared-prefix measurement, and what their requests ask for.
PREFIX = ((PLAIN_A, NONE), (STEERED, BLENDS))

Start = Callable[[str, int], Measuring]  # an engine's name, and the number of the start


def engine_names(settings: Settings) -> list[str]:
    return [PLAIN_A, PLAIN_B, STEERED, *([HF] if settings.hf_rounds else [])]


def run(
    settings: Settings,
    circuit: CircuitSpec,
    record: Record,
    start_engine: Start,
    shown: bool = True,
) -> None:
    """Returns when all is measured. shown: tells how far it is. Raises: BenchError."""
    todo = {start: [b for b in blocks(settings, start) if not record.has_block(b)] for start in range(settings.starts)}
    measurements = sum(len(block.order) for of_start in todo.values() for block in of_start)
    with Bar("bench", measurements, unit="measurements", shown=shown) as bar:
        for start, of_start in todo.items():
            if of_start or not record.has_prefix(start, len(PREFIX)):
                _run_start(settings, circuit, record, start_engine, start, of_start, bar)


def _run_start(
    settings: Settings,
    circuit: CircuitSpec,
    record: Record,
    start_engine: Start,
    start: int,
    todo: list[Block],
    bar: Bar,
) -> None:
    def say(what: str) -> None:
        bar.tell((f"start {start + 1}/{settings.starts}, " if settings.starts > 1 else "") + what)

    session = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    with ExitStack() as running:
        engines = {}
        for name in engine_names(settings):
            say(f"starting {name}")
            engines[name] = running.enter_context(closing(start_engine(name, start)))
        record.add_engine(engines[STEERED].about)
        say("warming up")
        _warm_up(settings, circuit, engines)
        for block in todo:
            ids = prompts(settings, block, circuit.model.vocab_size)
            for engine, scenario in block.order:
                say(f"round {block.round + 1}/{settings.rounds}, batch {block.batch_size}: {engine}, {scenario}")
                asked = requests(scenario, block.batch_size, circuit, settings.seed)
                reply = engines[engine].measure(ids, asked, settings.output_tokens)
                if reply.get("hits"):
                    raise BenchError(
                        f"{engine}: the prefix cache gave {reply['hits']} tokens of prompts that should be new to it"
                    )
                record.add(timing(block, engine, scenario, session, reply))
                bar.advance()
        if not record.has_prefix(start, len(PREFIX)):
            say("shared prefix")
            _measure_prefix(settings, circuit, engines, record, start, session)


def _warm_up(settings: Settings, circuit: CircuitSpec, engines: dict[str, Measuring]) -> None:
    """Every batch size once: kernels are chosen, buffers allocated, graphs captured."""
    for name, engine in engines.items():
        for size in settings.hf_batch_sizes() if name == HF else settings.batch_sizes:
            # Rounds are numbered from 0, so that no round has these prompts.
            ids = prompts(settings, Block(0, settings.rounds, size, ()), circuit.model.vocab_size)
            scenario = {STEERED: BLENDS, HF: ONE}.get(name, NONE)
            engine.measure(ids, requests(scenario, size, circuit, settings.seed), WARM_UP_TOKENS)


def _measure_prefix(
    settings: Settings,
    circuit: CircuitSpec,
    engines: dict[str, Measuring],
    record: Record,
    start: int,
    session: str,
) -> None:
    ids = prefix_prompts(settings, start, circuit.model.vocab_size)
    for engine, scenario in PREFIX:
        asked = requests(scenario, len(ids), circuit, settings.seed)
        reply = engines[engine].measure(ids, asked, TAIL_OUTPUT, one_by_one=True)
        record.add(PrefixHits(start, engine, scenario, session, reply["queries"], reply["hits"]))
