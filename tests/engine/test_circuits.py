"""Several circuits in one engine, there from the start or loaded while it runs, against Hugging Face with hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emovllm.circuit_files import load_circuit
from support.adapters import Adapter
from support.circuits import random_circuit
from support.engine import Ask, AsyncEngine, Engine, Reply, assert_same
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series

pytestmark = pytest.mark.engine

MAX_TOKENS = 16
CAPACITY = 8
EMOTIONS = {"a": ("anger", "fear"), "b": ("anger", "joy", "calm"), "late": ("fear", "awe")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512, initializer_range=0.3)


@pytest.fixture(scope="module")
def root(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circuits")
    for seed, (name, emotions) in enumerate(EMOTIONS.items()):
        # Other layers' sites are of one circuit alone.
        random_circuit(model, folder / name, names=emotions, seed=seed, neurons=8 if name != "a" else 0)
    random_circuit(model, folder / "more", names=("calm", "joy"), seed=9)
    random_circuit(tiny_model(folder / "stranger", seed=7), folder / "wrong", names=EMOTIONS["late"])
    return folder


def settings(root: Path, *names: str, capacity: int = CAPACITY) -> dict[str, Any]:
    circuits = {name: str(root / name) for name in names}
    return {"emovllm": {"circuit": circuits, "capacity": capacity, "circuit_root": str(root)}}


@pytest.fixture(scope="module")
def start(model: str, root: Path, series: Series) -> Callable[..., Engine]:
    """`start(*circuits, capacity=..., **config)`: an eager engine, in place of the one before."""

    def start(*names: str, capacity: int = CAPACITY, **config: Any) -> Engine:
        return series.start(
            model, None, **{"max_model_len": 256, **config}, additional_config=settings(root, *names, capacity=capacity)
        )

    return start


@pytest.fixture(scope="module")
def expected(model: str, root: Path) -> Callable[[list[Ask]], list[Reply]]:
    oracles = {name: Oracle(model, root / name) for name in EMOTIONS}

    def replies(asks: list[Ask]) -> list[Reply]:
        found = []
        for ask in asks:
            asked = ask.fields.get("emotion", {})
            mix = {asked: 1.0} if isinstance(asked, str) else asked
            name = next(iter(mix)).partition("/")[0].removesuffix("2") if mix else "a"
            bare = {key.partition("/")[2]: weight for key, weight in mix.items()}
            fields = {**ask.fields, "emotion": bare or None}
            found += oracles[name].generate([Ask(ask.prompt, fields)], MAX_TOKENS)
        return found

    return replies


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 37 + 11 * i * i + i) % 120 + 4 for i in range(length)]


def batch(*emotions: Any) -> list[Ask]:
    asked = [{"emotion": emotion} if emotion else {} for emotion in emotions]
    return [Ask(prompt(seed, 5 + 9 * seed), fields) for seed, fields in enumerate(asked)]


BOTH = batch("a/anger", "b/anger", "a/fear", "b/joy", None, {"b/calm": 0.5, "b/anger": 0.7}, {"a/fear": -1.0})


@pytest.mark.parametrize("capacity", [5, CAPACITY])
def test_circuits_side_by_side_equal_the_oracle(
    start: Callable[..., Engine], expected: Callable[[list[Ask]], list[Reply]], capacity: int
) -> None:
    engine = start("a", "b", capacity=capacity)
    assert_same(engine.generate(BOTH, MAX_TOKENS), expected(BOTH))
    # Every prompt is in the prefix cache now, and what each circuit made of it must not be another's.
    swapped = batch("b/anger", "a/anger", "b/joy", "a/fear", "a/anger", "a/anger", None)
    assert_same(engine.generate(swapped, MAX_TOKENS), expected(swapped))


def test_a_circuit_loaded_later_equals_one_that_was_there(
    start: Callable[..., Engine], root: Path, model: str, tmp_path: Path
) -> None:
    adapter = Adapter(model, "both", tmp_path)
    asks = [Ask(prompt(3, 20), {"emotion": "b/anger"}, lora=adapter.path)]
    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
    engine = start("b", "late", **lora)
    engine.generate(asks, 2)
    whole = engine.vectors()
    engine = start("b", **lora)
    engine.generate(asks, 2)
    alone = engine.vectors()
    assert alone != whole
    wrong = [str(root / "wrong"), load_circuit(root / "wrong").digest()]
    assert engine.call("collective_rpc", "emotion_read", None, wrong) == [None]
    [report] = engine.call("collective_rpc", "emotion_load", None, [3])
    assert "weights served here are not that model's" in report["error"]
    assert engine.vectors() == alone
    [error] = engine.call("collective_rpc", "emotion_read", None, [str(root / "late"), "0" * 64])
    assert "not the circuit that the server read" in error
    digest = load_circuit(root / "late").digest()
    assert engine.call("collective_rpc", "emotion_read", None, [str(root / "late"), digest]) == [None]
    [report] = engine.call("collective_rpc", "emotion_load", None, [3])
    assert report["error"] is None
    assert digest in report["digests"]
    assert engine.vectors() == whole
    engine.call("collective_rpc", "emotion_unload", None, [digest])
    assert engine.vectors() == alone


def test_circuits_come_and_go_in_a_compiled_engine(
    model: str, expected: Callable[[list[Ask]], list[Reply]], root: Path, tmp_path: Path
) -> None:
    env = {"VLLM_CACHE_ROOT": str(tmp_path / "cache"), "VLLM_USE_AOT_COMPILE": "0", "TORCH_LOGS": "recompiles"}
    config = {"model": model, "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 256, "block_size": 32}
    with AsyncEngine(
        tmp_path / "engine.log", env, **config, disable_log_stats=False, additional_config=settings(root, "a")
    ) as engine:
        first = batch("a/anger", None, "a/fear")
        assert_same(engine.generate(first, MAX_TOKENS), expected(first))
        for name, path, message in (
            ("late", "../late", "no such folder under the circuit root"),
            ("late", str(root.parent), "no such folder under the circuit root"),
            ("late", ".", "no such folder under the circuit root"),
            ("a", "late", "a circuit a is there already"),
            ("again", "a", "the same circuit is loaded already"),
            ("wrong", "wrong", "weights served here are not that model's"),
            ("b/c", "b", "name: up to 64"),
            ("empty", "stranger", "circuit.json"),
        ):
            assert message in engine.admin("load", name, path)
        assert engine.admin("load", "late", "late") == ""
        assert engine.admin("load", "b", "b") == ""
        second = batch("late/fear", "a/fear", "b/anger", {"late/awe": 1.2}, None, "a/anger", "b/joy")
        assert_same(engine.generate(second, MAX_TOKENS), expected(second))
        # Waits for the requests that use it; they end as they would.
        replies, refusal, waited = engine.generate_while(batch("b/anger", "late/awe"), MAX_TOKENS, "unload", "b")
        assert (refusal, waited) == ("", True)
        assert_same(replies, expected(batch("b/anger", "late/awe")))
        assert engine.admin("load", "b2", "b") == ""
        assert_same(engine.generate(batch("b2/joy"), MAX_TOKENS), expected(batch("b/joy")))
        assert engine.admin("unload", "nobody") == "no circuit nobody is loaded; there are a, late, b2"
        assert "no room for 2 emotions in a row among 8" in engine.admin("load", "more", "more")
        assert "Recompiling function" not in engine.log()
