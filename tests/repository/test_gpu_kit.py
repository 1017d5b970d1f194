"""The parts of benchmarks/gpu that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import AutoConfig

from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.fingerprint import fingerprint_distance
from support.engine import Reply

KIT = Path(__file__).parents[2] / "benchmarks" / "gpu"


def kit(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_kit_{name}", KIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A tar.xz archive of random bytes, which do not compress."""
    source = tmp_path / "site"
    (source / "package").mkdir(parents=True)
    (source / "package" / "data.bin").write_bytes(np.random.default_rng(0).bytes(10_000))
    (source / "module.py").write_text("answer = 42\n")
    path = tmp_path / "site.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        tar.add(source, "site")
    return path


def test_pieces_come_back_as_what_was_cut(archive: Path, tmp_path: Path) -> None:
    pieces = kit("pieces")
    folders = pieces.split(archive, tmp_path / "pieces", 3000)
    assert len(folders) == 4
    assert all((folder / "part").stat().st_size <= 3000 for folder in folders)
    # In any order; the last one says so.
    left = [pieces.take(folder, tmp_path / "store") for folder in (folders[2], folders[0], folders[3], folders[1])]
    assert left == [3, 2, 1, 0]
    pieces.unpack(tmp_path / "store", tmp_path / "out")
    for name in ("package/data.bin", "module.py"):
        assert (tmp_path / "out" / "site" / name).read_bytes() == (tmp_path / "site" / name).read_bytes()


def test_a_damaged_piece_is_refused(archive: Path, tmp_path: Path) -> None:
    pieces = kit("pieces")
    folders = pieces.split(archive, tmp_path / "pieces", 3000)
    part = folders[1] / "part"
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    with pytest.raises(pieces.PieceError, match="piece 2 is damaged"):
        pieces.take(folders[1], tmp_path / "store")


def test_a_missing_piece_is_named(archive: Path, tmp_path: Path) -> None:
    pieces = kit("pieces")
    folders = pieces.split(archive, tmp_path / "pieces", 3000)
    for folder in (*folders[:2], folders[3]):
        pieces.take(folder, tmp_path / "store")
    with pytest.raises(pieces.PieceError, match="piece 3 of 4 is missing"):
        pieces.unpack(tmp_path / "store", tmp_path / "out")


def test_pieces_of_two_archives_do_not_mix(archive: Path, tmp_path: Path) -> None:
    pieces = kit("pieces")
    pieces.take(pieces.split(archive, tmp_path / "old", 3000)[0], tmp_path / "store")
    folders = pieces.split(archive, tmp_path / "new", 4000)
    with pytest.raises(pieces.PieceError, match="of another archive"):
        pieces.take(folders[1], tmp_path / "store")


def test_packed_wheels_are_pinned_and_named_once() -> None:
    lines = [line for line in (KIT / "wheels.txt").read_text().splitlines() if not line.startswith("#")]
    names = [re.fullmatch(r"([a-z0-9-]+)==[\w.]+", line) for line in lines]
    assert all(names)
    assert len({name[1] for name in names if name}) == len(lines)


@pytest.mark.parametrize(("shape", "billions"), [("3b", 3.21), ("8b", 8.03)])
def test_shapes_are_those_of_the_named_models(tmp_path: Path, shape: str, billions: float) -> None:
    config = AutoConfig.from_pretrained(kit("shapes").write_model(kit("shapes").SHAPES[shape], tmp_path / shape))
    hidden, wide, width = config.hidden_size, config.intermediate_size, config.head_dim
    attention = hidden * width * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = attention + 3 * hidden * wide + 2 * hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    total = config.num_hidden_layers * layer + embeddings + hidden
    assert total / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_dummy_circuit_knows_its_dummy_weights(tmp_path: Path) -> None:
    shapes = kit("shapes")
    config = shapes.SHAPES["tiny"]
    weights = {
        kind: np.random.default_rng(1).uniform(-1e-3, 1e-3, (config["hidden_size"], width)).astype(np.float32)
        for kind, width in (("attn", config["num_attention_heads"] * config["head_dim"]), ("mlp", 256))
    }
    save_circuit(shapes.dummy_circuit(config, "tiny", lambda kind, _: weights[kind]), tmp_path)
    circuit = load_circuit(tmp_path)
    assert len(circuit.sites()) == 2 * config["num_hidden_layers"]
    other = shapes.dummy_circuit(config, "tiny", lambda kind, _: -weights[kind])
    assert fingerprint_distance(other.fingerprint, circuit.fingerprint) == pytest.approx(2)


def _ratio(mean: float) -> dict[str, object]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "rounds": 3, "starts": [mean]}


RESULTS = {
    "exactness.json": {
        "machine": {"gpu": "NVIDIA H200", "vllm": "0.26.0", "torch": "2.11.0", "cores": "16"},
        "tokens": 48,
        "requests": 14,
        "moved": 12,
        "float32": {
            "V2, eager": {"attention": "TRITON_ATTN", "equal": 1.0, "error_max": 2e-5, "exact": True},
            "V1, preemption": {"exact": False, "error": "nothing was preempted"},
        },
        "bfloat16": {
            "steered": {"against float32": {"equal": 0.75, "error_max": 0.2, "error_mean": 0.02}},
            "reference, steered": {"against float32": {"equal": 0.7, "error_max": 0.3, "error_mean": 0.03}},
        },
    },
    "speed-3b.json": {
        "command": "emovllm bench model",
        "complete": True,
        "settings": {"prompt_tokens": 512, "output_tokens": 256, "rounds": 3},
        "engine": {"gpu": "NVIDIA H200", "v2_model_runner": True, "cudagraph": "FULL", "dtype": "bfloat16"},
        "rows": {
            "8": [
                {
                    "name": "plain vLLM",
                    "against": None,
                    "values": {"tokens_per_s": 1900.4, "tpot_ms": 4.2},
                    "ratios": {},
                },
                {
                    "name": "one emotion",
                    "against": "plain vLLM",
                    "values": {"tokens_per_s": 1890.0, "tpot_ms": 4.21},
                    "ratios": {"tokens_per_s": _ratio(0.995), "tpot_ms": _ratio(1.003)},
                },
            ]
        },
    },
    "profile.json": {
        "gpu": "NVIDIA H200",
        "vllm": "0.26.0",
        "v2_model_runner": True,
        "layers": 28,
        "model": "3b",
        "modes": {
            "full CUDA graphs": {
                "plain": {"8": {"kernels": {"norm": 56, "gemm": 112}, "step_ms": 3.0}},
                "steered": {"8": {"kernels": {"norm_add": 56, "gemm": 112}, "step_ms": 3.03}},
            }
        },
        "differences": {
            "full CUDA graphs": {"8": {"extra_per_layer": 0.0, "time": 1.01, "changed": {"norm": -56, "norm_add": 56}}}
        },
    },
}


def test_the_report_tells_what_was_measured(tmp_path: Path) -> None:
    for name, content in RESULTS.items():
        (tmp_path / name).write_text(json.dumps(content))
    lines = kit("report").report(tmp_path).splitlines()
    assert "| V2, eager | TRITON_ATTN | 100.0% | 2.0e-05 | exact |" in lines
    assert "| V1, preemption |  |  |  | nothing was preempted |" in lines
    assert "| vLLM, steered | Hugging Face in float32 | 75.0% | 2.0e-02 | 2.0e-01 |" in lines
    assert "| 8 | one emotion | 1890 | 0.995 (0.985 to 1.005) | 4.21 | 1.003 (0.993 to 1.013) |" in lines
    assert "| full CUDA graphs | 8 | 168.0 | 168.0 | +0.00 | 3.000 | 3.030 | 1.010 |" in lines
    assert "| `norm_add` | +56 |" in lines


def test_only_equal_replies_are_called_exact() -> None:
    exactness = kit("exactness")
    wanted = [Reply([1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4])]

    def judged(name: str, reply: Reply, preemptions: int = 1) -> dict[str, object]:
        row: dict[str, object] = exactness.judged(name, {"preemptions": preemptions}, [reply], wanted)
        return row

    assert judged("V2, preemption", Reply([1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4005]))["exact"]
    assert not judged("V2, preemption", Reply([1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4]), preemptions=0)["exact"]
    assert not judged("V2, eager", Reply([1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.402]))["exact"]
    # What comes after the first other token has another context: it counts as missing, not as equal.
    other = judged("V2, eager", Reply([1, 7, 3, 4], [-0.1, -0.5, -0.3, -0.4]))
    assert (other["exact"], other["equal"], other["error_max"]) == (False, 0.25, 0)
    assert exactness.judged("V2, eager", {"error": "the engine ended"}, None, wanted)["exact"] is False


def test_kernels_are_compared_by_name() -> None:
    of = {
        "plain": {"8": {"kernels": {"norm": 4, "gemm": 8}, "step_ms": 2.0}},
        "steered": {"8": {"kernels": {"norm": 4, "gemm": 8, "add": 4}, "step_ms": 2.1}},
    }
    rows = kit("profile_step").differences(of, {"layers": 2})
    assert rows["8"] == {"extra_per_layer": 2.0, "time": pytest.approx(1.05), "changed": {"add": 4}}


@pytest.mark.parametrize("script", ["pack", "join", "shapes", "profile_step", "report"])
def test_scripts_tell_how_to_use_them(script: str) -> None:
    told = subprocess.run([sys.executable, KIT / f"{script}.py", "--help"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("usage: ")


def test_the_readme_names_every_script_and_its_commands_fit() -> None:
    text = (KIT / "README.md").read_text()
    assert all(path.name in text for path in KIT.glob("*.py"))
    commands = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(commands) >= 5
    assert all(len(command) <= 2000 for command in commands)
