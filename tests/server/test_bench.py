"""`emovllm bench`: what it plans, records, computes and says; and the whole command on a tiny model."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.circuit_files import load_circuit
from emovllm.cli import main
from emovllm.errors import BenchError
from emovllm.fields import resolve
from emovllm.options import published_command
from emovllm.spec import CircuitSpec
from emovllm_server.bench import command, result
from emovllm_server.bench.cli import BenchOptions
from emovllm_server.bench.engine import Engine, Launcher, environment
from emovllm_server.bench.plan import (
    BLENDS,
    HF,
    MIXED,
    NONE,
    ONE,
    PLAIN_A,
    PLAIN_B,
    STEERED,
    Settings,
    blends,
    blocks,
    prefix_prompts,
    prompts,
    requests,
)
from emovllm_server.bench.ratios import PLAIN, Ratio, Table, ratio
from emovllm_server.bench.record import METRICS, PrefixHits, Record, Timing, timing
from emovllm_server.bench.run import run
from support.circuits import random_circuit
from support.models import TINY, tiny_model
from support.servers import BIN

VOCAB = TINY["vocab_size"]


def make_settings(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "model": "tiny",
        "circuit": "0" * 64,
        "versions": {"emovllm": "0"},
        "batch_sizes": (1, 4),
        "rounds": 3,
        "starts": 2,
        "prompt_tokens": 16,
        "output_tokens": 8,
        "prefix_tokens": 64,
        "hf_rounds": 1,
        "max_model_len": 128,
    }
    return Settings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def circuit(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_circuit(tiny, tmp_path_factory.mktemp("circuits") / "tiny")


@pytest.fixture(scope="module")
def spec(circuit: Path) -> CircuitSpec:
    return load_circuit(circuit).spec


class FakeEngine:
    """Answers like an engine that takes `step` seconds for each token, and notes what it was asked."""

    def __init__(self, name: str, step: float, asked: list[tuple[str, int, int]], limit: int | None = None) -> None:
        self.about = {"device": "cpu", "dtype": "float32"}
        self.closed = False
        self._name, self._step, self._asked, self._limit = name, step, asked, limit

    def measure(
        self, prompts: list[list[int]], fields: list[dict[str, Any]], output_tokens: int, one_by_one: bool = False
    ) -> dict[str, Any]:
        if self._limit is not None and len(self._asked) >= self._limit:
            raise KeyboardInterrupt
        self._asked.append((self._name, len(prompts), output_tokens))
        times = [self._step * (1 + i) for i in range(output_tokens)]
        hits = 60 * len(prompts) if one_by_one else 0
        return {"seconds": times[-1], "arrivals": [times] * len(prompts), "queries": 80 * len(prompts), "hits": hits}

    def close(self) -> None:
        self.closed = True


def measure_with_fakes(
    record: Record, settings: Settings, spec: CircuitSpec, limit: int | None = None
) -> tuple[list[tuple[str, int, int]], list[FakeEngine]]:
    """Returns: what was asked of the engines, and the engines."""
    asked: list[tuple[str, int, int]] = []
    engines: list[FakeEngine] = []
    steps = {PLAIN_A: 0.010, PLAIN_B: 0.010, STEERED: 0.0125, HF: 0.1}

    def start_engine(name: str, start: int) -> FakeEngine:
        engines.append(FakeEngine(name, steps[name], asked, limit))
        return engines[-1]

    try:
        run(settings, spec, record, start_engine, shown=False)
    except KeyboardInterrupt:
        assert limit is not None
    return asked, engines


def timings_of(
    settings: Settings, tokens_per_s: Callable[[str, str, int], float], sessions: tuple[str, ...] = ("a", "b")
) -> list[Timing]:
    """Hand-made measurements of all that `settings` plan; `tokens_per_s(engine, scenario, round)`."""
    rows = []
    for start in range(settings.starts):
        for block in blocks(settings, start):
            for engine, scenario in block.order:
                rate = tokens_per_s(engine, scenario, block.round) * block.batch_size
                slow = 1e3 * block.batch_size / rate
                place = (start, block.round, block.batch_size, engine, scenario, sessions[start])
                rows.append(Timing(*place, 1.0, rate, 3 * slow, slow, 2 * slow))
    return rows


def test_the_blends_are_distinct_and_allowed(spec: CircuitSpec) -> None:
    resolved = {resolve(asked, spec) for asked in blends(spec)}
    assert len(resolved) == 256
    assert None not in resolved
    assert blends(spec) == blends(spec)
    strengths = {asked["emotion_strength"] for asked in blends(spec)}
    assert len(strengths) > 200


def test_the_blends_of_a_circuit_with_one_emotion_are_distinct_too(tiny: str, tmp_path: Path) -> None:
    alone = load_circuit(random_circuit(tiny, tmp_path / "alone", names=("joy",))).spec
    assert len({resolve(asked, alone) for asked in blends(alone)}) == 256


def test_scenarios_ask_for_what_they_are_called(spec: CircuitSpec) -> None:
    assert requests(NONE, 3, spec) == [{}, {}, {}]
    assert requests(ONE, 3, spec) == [{"emotion": "anger"}] * 3
    assert [asked["emotion"] for asked in requests(MIXED, 7, spec)] == [*(e.name for e in spec.emotions), "anger"]
    assert len({str(asked) for asked in requests(BLENDS, 256, spec)}) == 256


def test_no_two_blocks_share_a_prompt_and_all_measures_of_a_block_do() -> None:
    settings = make_settings(batch_sizes=(1, 4, 8), rounds=4)
    seen: set[tuple[int, ...]] = set()
    total = 0
    for start in range(settings.starts):
        for block in blocks(settings, start):
            ids = prompts(settings, block, VOCAB)
            assert len(ids) == block.batch_size
            assert {len(prompt) for prompt in ids} == {settings.prompt_tokens}
            seen |= {tuple(prompt) for prompt in ids}
            total += len(ids)
    assert len(seen) == total


def test_every_round_measures_everything_in_another_order() -> None:
    settings = make_settings(rounds=6, starts=1, hf_rounds=2)
    planned = list(blocks(settings, 0))
    assert planned == list(blocks(settings, 0))
    for block in planned:
        of_vllm = [measure for measure in block.order if measure[0] != HF]
        assert sorted(of_vllm) == sorted(
            [(PLAIN_A, NONE), (PLAIN_B, NONE), *((STEERED, s) for s in (NONE, ONE, MIXED, BLENDS))]
        )
        assert ((HF, ONE) in block.order) == (block.round < 2)
    assert len({block.order for block in planned}) > 6


def test_hugging_face_is_measured_one_prompt_at_a_time_whatever_the_batch_sizes() -> None:
    settings = make_settings(batch_sizes=(8,), rounds=2, hf_rounds=1)
    alone = [block for block in blocks(settings, 0) if block.batch_size == 1]
    assert [(block.round, block.order) for block in alone] == [(0, ((HF, ONE),))]


def test_a_shared_prefix_is_shared_and_the_tails_are_not() -> None:
    settings = make_settings()
    ids = prefix_prompts(settings, 0, VOCAB)
    assert len({tuple(prompt[: settings.prefix_tokens]) for prompt in ids}) == 1
    assert len({tuple(prompt) for prompt in ids}) == settings.prefix_requests
    assert ids[0][: settings.prefix_tokens] != prefix_prompts(settings, 1, VOCAB)[0][: settings.prefix_tokens]


def test_a_timing_comes_from_the_times_of_arrival() -> None:
    block = next(blocks(make_settings(batch_sizes=(4,), hf_rounds=0), 0))
    reply = {"seconds": 2.0, "arrivals": [[0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.8], [0.3, 0.6, 0.9, 1.2]]}
    row = timing(block, STEERED, ONE, "s", reply)
    assert row.tokens_per_s == pytest.approx(6)
    assert row.ttft_ms == pytest.approx(200)
    assert row.tpot_ms == pytest.approx(200)
    assert row.itl_p99_ms == pytest.approx(300, rel=0.01)


def test_a_known_ratio_is_recovered_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    logs = {name: list(math.log(0.97) + 0.01 * rng.standard_normal(20)) for name in ("a", "b")}
    found = ratio(logs)
    assert found.mean == pytest.approx(0.97, abs=0.005)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.97 < found.high
    assert found.high - found.low < 0.02
    assert found.rounds == 40
    assert len(found.starts) == 2


def test_starts_that_differ_widen_the_interval() -> None:
    same = ratio({"a": [0.0, 0.01, -0.01, 0.0], "b": [0.0, 0.01, -0.01, 0.0]})
    apart = ratio({"a": [0.10, 0.11, 0.09, 0.10], "b": [-0.10, -0.09, -0.11, -0.10]})
    assert apart.mean == pytest.approx(same.mean) == pytest.approx(1)
    assert apart.low is not None
    assert same.low is not None
    assert apart.low < 0.92 < same.low
    assert apart.starts == pytest.approx((math.exp(0.1), math.exp(-0.1)))


def test_one_round_has_no_interval() -> None:
    assert ratio({"a": [math.log(0.9)]}) == Ratio(pytest.approx(0.9), None, None, 1, (pytest.approx(0.9),))


def test_identical_engines_have_a_ratio_of_one() -> None:
    settings = make_settings()
    # Rounds differ by far more than engines: pairing within a round takes that out.
    table = Table(timings_of(settings, lambda engine, scenario, round_: 100.0 * 2**round_))
    for metric in METRICS:
        found = table.ratio((PLAIN_B, NONE), (PLAIN_A, NONE), 4, metric)
        assert found is not None
        assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
        assert found.rounds == settings.rounds * settings.starts


def test_ratios_are_to_the_geometric_mean_of_both_plain_engines() -> None:
    rates = {PLAIN_A: 90.0, PLAIN_B: 100 * 100 / 90, STEERED: 98.0, HF: 10.0}
    table = Table(timings_of(make_settings(), lambda engine, scenario, round_: rates[engine]))
    found = table.ratio((STEERED, ONE), PLAIN, 4, "tokens_per_s")
    assert found is not None
    assert found.mean == pytest.approx(0.98)
    assert table.value(PLAIN, 4, "tokens_per_s") == pytest.approx(400)
    assert table.ratio((STEERED, ONE), (HF, ONE), 4, "tokens_per_s", other_batch_size=1).mean == pytest.approx(39.2)
    assert table.ratio((STEERED, ONE), ("nobody", ONE), 4, "tokens_per_s") is None


@pytest.mark.parametrize(
    ("low", "high", "at_least", "verdict"),
    [
        (0.985, 0.995, True, "met"),
        (0.97, 0.99, True, "open"),
        (0.95, 0.975, True, "missed"),
        (0.95, 0.975, False, "met"),
        (0.985, 0.995, False, "missed"),
    ],
)
def test_a_target_is_met_by_the_whole_interval(low: float, high: float, at_least: bool, verdict: str) -> None:
    assert result.verdict(Ratio((low + high) / 2, low, high, 8, ()), 0.98, at_least) == verdict


def test_too_few_rounds_decide_nothing() -> None:
    assert result.verdict(Ratio(1, 1, 1, 2, (1,)), 0.98, True) == "too few rounds"
    assert result.verdict(Ratio(1, None, None, 1, (1,)), 0.98, True) == "too few rounds"


def test_what_is_recorded_is_not_measured_again(tmp_path: Path, spec: CircuitSpec) -> None:
    settings = make_settings()
    asked, engines = measure_with_fakes(Record(tmp_path, settings), settings, spec)
    assert all(engine.closed for engine in engines)
    assert len(engines) == 4 * settings.starts
    planned = sum(len(block.order) for start in range(settings.starts) for block in blocks(settings, start))
    again = Record(tmp_path, settings)
    assert len(again.timings) == planned == sum(tokens == settings.output_tokens for *_, tokens in asked)
    assert len(again.prefixes) == 2 * settings.starts
    assert measure_with_fakes(again, settings, spec) == ([], [])


def test_an_interrupted_benchmark_goes_on_with_whole_rounds(tmp_path: Path, spec: CircuitSpec) -> None:
    settings = make_settings(starts=1)
    warm_up = 2 * 4
    record = Record(tmp_path, settings)
    _, engines = measure_with_fakes(record, settings, spec, limit=warm_up + 10)
    assert all(engine.closed for engine in engines)
    assert len(record.timings) == 10
    # The last line was being written.
    with record.path.open("a") as file:
        file.write('{"timing": {"start"')
    resumed = Record(tmp_path, settings)
    assert resumed.timings == record.timings
    whole = [block for block in blocks(settings, 0) if resumed.has_block(block)]
    assert len(whole) == 1
    asked, _ = measure_with_fakes(resumed, settings, spec)
    planned = sum(len(block.order) for block in blocks(settings, 0))
    assert len(asked) == warm_up + planned - len(whole[0].order) + 2
    best = Record(tmp_path, settings).best()
    assert len(best) == planned
    for block in blocks(settings, 0):
        sessions = {row.session for row in best if (row.round, row.batch_size) == (block.round, block.batch_size)}
        assert len(sessions) == 1


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    Record(tmp_path, make_settings())
    with pytest.raises(BenchError, match=r"batch_sizes \[1, 4\] there, \[1, 8\] now.*--fresh"):
        Record(tmp_path, make_settings(batch_sizes=(1, 8)))
    assert Record(tmp_path, make_settings(batch_sizes=(1, 8)), fresh=True).timings == []
    Record(tmp_path, make_settings(batch_sizes=(1, 8)))


def test_a_prompt_found_in_the_prefix_cache_stops_the_benchmark(tmp_path: Path, spec: CircuitSpec) -> None:
    class Cheating(FakeEngine):
        def measure(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {**super().measure(*args, **kwargs), "hits": 16}

    settings = make_settings(starts=1)
    with pytest.raises(BenchError, match="16 tokens of prompts"):
        run(settings, spec, Record(tmp_path, settings), lambda name, _: Cheating(name, 0.01, []), shown=False)


def test_the_report_has_every_row_target_and_figure(tmp_path: Path) -> None:
    settings = make_settings(rounds=4)
    speeds = {(PLAIN_A, NONE): 100, (PLAIN_B, NONE): 100, (STEERED, NONE): 99.5, (STEERED, ONE): 95.0}
    speeds |= {(STEERED, MIXED): 98.5, (STEERED, BLENDS): 94.5, (HF, ONE): 20.0}
    timings = timings_of(settings, lambda engine, scenario, _: speeds[engine, scenario])
    prefixes = [
        PrefixHits(start, engine, scenario, "s", 1280, 960)
        for start in range(2)
        for engine, scenario in ((PLAIN_A, NONE), (STEERED, BLENDS))
    ]
    machine = {"cpu": "A CPU", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11"}
    made = result.build(
        settings, 6, timings, prefixes, command="emovllm bench", machine=machine, engine={"device": "cpu"}
    )
    command.write(made, tmp_path, command._console())
    text = (tmp_path / "result.md").read_text()
    for size in (1, 4):
        section = text.split(f"## Batch size {size}\n")[1].split("##")[0]
        assert "| plain vLLM |" in section
        assert "1.000 [1.000, 1.000]" in section.split("A/A")[1].split("\n")[0]
        assert "0.950 [0.950, 0.950]" in section.split("| one emotion |")[1].split("\n")[0]
        assert "0.955 [0.955, 0.955]" in section.split("toggled: one emotion / no emotion")[1].split("\n")[0]
        assert "256 blends and strengths / one emotion" in section
        assert "0.200" in section.split("Hugging Face")[1].split("\n")[0]
        assert section.count("| one emotion / Hugging Face") == (1 if size == 1 else 2)
    assert text.count("75.0%") == 2
    assert "start by start" in text
    verdicts = {(t.name, t.batch_size): t.verdict for t in made.targets}
    assert verdicts["no emotion, tokens/s over plain", 4] == "met"
    assert verdicts["every request steered, tokens/s over plain", 4] == "missed"
    assert verdicts["256 blends, tokens/s over one emotion", 1] == "met"
    assert verdicts["shared prefix, hits over plain", None] == "met"
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "result.json").read_text())["rows"]["4"][1]["name"] == result.AA


def test_a_report_needs_no_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings()
    machine = {"cpu": "A CPU", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11"}
    timings = timings_of(settings, lambda *_: 100.0)
    made = result.build(settings, 6, timings, [], command="emovllm bench", machine=machine, engine={})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    command.write(made, tmp_path, command._console())
    assert "pip install matplotlib" in capsys.readouterr().out
    assert "![" not in (tmp_path / "result.md").read_text()


def test_the_recorded_command_does_not_say_where_things_lie() -> None:
    options = BenchOptions("/home/somebody/model", circuit="circuits/mine", quick=True, out=Path("/home/somebody/out"))
    line = published_command("bench", options)
    assert line == "emovllm bench model --circuit circuits/mine --quick"


def test_engines_are_alike_but_for_the_plugin_and_the_circuit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A copy, for what is set here must not reach other tests.
    monkeypatch.setattr(os, "environ", {**os.environ, "VLLM_PLUGINS": "other"})
    extra = {"additional_config": {"emovllm": {"allow_untested_vllm": True}, "theirs": 1}, "block_size": 32}
    settings = make_settings(engine_args=extra, env={"VLLM_USE_V2_MODEL_RUNNER": "1"})
    launcher = Launcher(settings, "MODEL", "CIRCUIT", tmp_path / "logs")
    plain, steered = launcher.arguments(PLAIN_A), launcher.arguments(STEERED)
    assert launcher.arguments(PLAIN_B) == plain
    assert plain["block_size"] == 32
    assert plain["additional_config"] == {"theirs": 1}
    assert steered["additional_config"] == {"theirs": 1, "emovllm": {"allow_untested_vllm": True, "circuit": "CIRCUIT"}}
    del plain["additional_config"], steered["additional_config"]
    assert plain == steered
    of_plain, of_steered = environment(False), environment(True)
    assert (of_plain.pop("VLLM_PLUGINS"), of_steered.pop("VLLM_PLUGINS")) == ("", "emovllm")
    assert of_plain == of_steered
    assert of_plain["VLLM_USE_V2_MODEL_RUNNER"] == "1"


def test_a_plain_engine_with_the_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    closed: list[str] = []

    class Loaded:
        def __init__(self, name: str, *_: Any) -> None:
            self.about = {"plugin": True}
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    monkeypatch.setattr("emovllm_server.bench.engine.Engine", Loaded)
    launcher = Launcher(make_settings(), "MODEL", "CIRCUIT", tmp_path / "logs")
    assert launcher(STEERED, 0).about == {"plugin": True}
    with pytest.raises(BenchError, match="plain B: emovllm's plugin is loaded"):
        launcher(PLAIN_B, 0)
    assert closed == [PLAIN_B]


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"the engine hf: .*no-such-model.*hf\.log"):
        Engine(
            "hf",
            "emovllm_offline.model.timing_process",
            {"model": "/no-such-model", "circuit": ""},
            os.environ,
            tmp_path / "hf.log",
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/no/such", "--circuit", "/no/such"], "no such circuit folder"),
        (["some/model"], "no circuit for some/model: give --circuit"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_requests_longer_than_the_model_length_are_refused(
    tiny: str, circuit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [tiny, "--circuit", str(circuit), "--max-model-len", "256", "--out", str(tmp_path / "out")]
    assert main(["bench", *options]) == 2
    assert "--max-model-len 256 is too short for requests of 532 tokens" in capsys.readouterr().err


def test_the_benchmark_needs_neither_torch_nor_vllm_nor_offline() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'vllm', 'transformers', 'emovllm_offline']));"
    modules = "emovllm_server.bench.command, emovllm_server.bench.cli"
    subprocess.run([sys.executable, "-c", f"{blocked} import {modules}"], check=True)


def test_hugging_face_generates_what_the_reference_does(tiny: str, circuit: Path) -> None:
    from emovllm_offline.model.timing_process import Baseline

    baseline = Baseline(tiny, str(circuit), "float32")
    ids = np.random.default_rng(0).integers(0, VOCAB, (3, 12)).tolist()
    fields = {"emotion": "fear", "emotion_strength": 2.0}
    tokens, times = baseline.generate(ids, fields, 8)
    emotion = resolve(fields, baseline.circuit.spec)
    assert tokens == [baseline._control.generate(prompt, emotion, 8)[0] for prompt in ids]
    assert tokens != baseline.generate(ids, {}, 8)[0]
    assert len(times) == 8
    assert times == sorted(times)
    reply = baseline.measure(ids, [fields] * 3, 8, one_by_one=True)
    assert [len(arrivals) for arrivals in reply["arrivals"]] == [8, 8, 8]
    with pytest.raises(ValueError, match="one emotion"):
        baseline.measure(ids, [fields, fields, {}], 8)


@pytest.mark.engine
def test_the_command_measures_a_tiny_model_from_end_to_end(tiny: str, circuit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = {"skip_tokenizer_init": True, "enforce_eager": True, "block_size": 32}
    options = [
        "--batch-sizes",
        "1,4",
        "--rounds",
        "1",
        "--starts",
        "1",
        "--prompt-tokens",
        "16",
        "--output-tokens",
        "4",
    ]
    options += ["--prefix-tokens", "64", "--dtype", "float32", "--engine-args", json.dumps(arguments)]
    line = [str(BIN / "emovllm"), "bench", tiny, "--circuit", str(circuit), *options, "--out", str(out)]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    ran = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    made = json.loads((out / "result.json").read_text())
    assert made["complete"]
    assert {size: len(rows) for size, rows in made["rows"].items()} == {"1": 12, "4": 13}
    text = (out / "result.md").read_text()
    for rows in made["rows"].values():
        for row in rows:
            figures = [*(row["values"] or {}).values(), *(ratio["mean"] for ratio in row["ratios"].values())]
            assert len(figures) >= len(METRICS)
            assert all(math.isfinite(figure) and figure > 0 for figure in figures)
            assert f"| {row['name']} |" in text
            assert row["name"] in ran.stdout
    # 16 requests of 80 tokens, 64 in common; the first finds nothing.
    assert [(p["hits"], p["queries"]) for p in made["prefixes"]] == [(15 * 64, 16 * 80)] * 2
    assert [t["verdict"] for t in made["targets"] if t["batch_size"] is None] == ["met"]
    assert made["engine"]["plugin"]
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG")
    # All is there: no engine starts, and the report is the same.
    again = subprocess.run(line, capture_output=True, text=True, env=env, check=False, timeout=60)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "result.json").read_text()) == made


def test_interrupting_the_command_ends_its_engines(tiny: str, circuit: Path, tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "emovllm.cli",
        "bench",
        tiny,
        "--circuit",
        str(circuit),
        "--out",
        str(tmp_path / "out"),
    ]
    line += ["--prompt-tokens", "16", "--output-tokens", "4", "--prefix-tokens", "64"]
    line += ["--engine-args", json.dumps({"skip_tokenizer_init": True})]
    # What runs the tests may have been started in the background, where interrupts are ignored, and are by children.
    interruptible = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(line, stderr=subprocess.PIPE, preexec_fn=interruptible) as process:
        log = tmp_path / "out" / "logs" / "0-plain-A.log"
        while process.poll() is None and not log.exists():
            pass
        children = _children(process.pid)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def _children(pid: int) -> list[int]:
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        pass
    return [int(child) for child in found]
