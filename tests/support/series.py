"""Engines of tiny models, one after another in one process, and what is asked of each."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from emovllm.emotion import KEY
from emovllm.probe import NAME as PROBE
from support.engine import Ask, Engine

# The V2 model runner, whose Triton kernels are interpreted.
V2 = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("triton_cpu")), os.environ.get("PYTHONPATH", "")]),
}


def settings(circuit: Path) -> dict[str, Any]:
    """Those of a circuit, whose probe is read where it has one."""
    return {"circuit": str(circuit), **({"readout": True} if (circuit / PROBE).is_file() else {})}


def config_of(model: str, additional: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Of a tiny engine."""
    return {
        "model": model,
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": 128,
        "block_size": 32,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "disable_log_stats": False,
        # To clear more takes as long as all else of a tiny engine.
        "kv_cache_memory_bytes": 2**27,
        "additional_config": additional,
        **changes,
    }


class Series:
    """One process, in which each engine replaces the one before: vLLM is imported once."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        """`env`: of the process, whose engines may change it further."""
        self._folder = folder
        self._env = env or {}
        self._engine: Engine | None = None

    def start(self, model: str, circuit: Path | None, env: dict[str, str] | None = None, **changes: Any) -> Engine:
        """Raises: EngineError; the next start may succeed."""
        additional = {KEY: settings(circuit)} if circuit else {}
        config = config_of(model, additional, **changes)
        if self._engine is None:
            self._engine = Engine(self._folder / "engines.log", {"VLLM_CACHE_ROOT": str(self._folder), **self._env})
        self._engine.restart(env, **config)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def mixed_batch() -> list[Ask]:
    """Six emotions, a blend, negative strength, none, all scopes, and schedules, at 5 to 60 tokens of a vocabulary of
    128."""
    fields: list[dict[str, Any]] = [
        {"emotion": "anger"},
        {"emotion": "sadness"},
        {"emotion": "happiness"},
        {"emotion": "fear"},
        {"emotion": "surprise"},
        {"emotion": "disgust"},
        {"emotion": {"anger": 0.7, "fear": 0.3}, "emotion_strength": 1.5},
        {"emotion": "anger", "emotion_strength": -1.0},
        {},
        {"emotion": "sadness", "emotion_scope": "prompt_last", "emotion_strength": 2.0},
        {"emotion": "disgust", "emotion_scope": "all"},
        {"emotion": "fear", "emotion_strength": 2.0, "emotion_schedule": {"hold": 3, "half_life": 2}},
        {"emotion": "happiness", "emotion_strength": -1.5, "emotion_schedule": {"from": 2, "to": 6}},
        {"emotion": {"anger": 0.7, "fear": 0.3}, "emotion_schedule": [[0, 0], [4, 1], [10, 0.5]]},
    ]
    lengths = [5, 17, 33, 60, 31, 32, 48, 24, 40, 15, 50, 31, 20, 44]
    return [
        Ask([3 + (seed * 37 + i * (11 + seed)) % 125 for i in range(length)], asked)
        for seed, (length, asked) in enumerate(zip(lengths, fields, strict=True))
    ]


def reading(asks: list[Ask]) -> list[Ask]:
    """Two in three of them ask for a read-out of each token."""
    return [
        dataclasses.replace(ask, fields={**ask.fields, "emotion_readout": "tokens"}) if number % 3 else ask
        for number, ask in enumerate(asks)
    ]


def unsteered(asks: list[Ask]) -> list[Ask]:
    return [Ask(ask.prompt) for ask in asks]
