"""What `emovllm serve` fills into vLLM's arguments: the model and the circuit that were asked for, or a refusal."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import CircuitError, InputError, OptionsError
from emovllm.models import NAME
from emovllm_server import serve
from emovllm_server.arguments import parse
from emovllm_server.serve import fill_in, shipped_circuits

SHIPPED = str(shipped_circuits() / NAME)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(serve, "resolve_model", lambda model: "the-default-model")


def filled(*argv: str) -> argparse.Namespace:
    options, args = parse(argv, "serve")
    fill_in(args, options)
    return args


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "some/model"])
def test_another_model_is_never_replaced_by_the_default_one(tmp_path: Path, model: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(f"model: {model}\n")
    for argv in ([model], ["--model", model], ["--config", str(path)]):
        with pytest.raises(CircuitError, match=rf"no circuit for {model}: .*\(`emovllm build {model} --out DIR` makes"):
            filled(*argv)
        args = filled(*argv, "--circuit", SHIPPED)
        assert args.model == args.model_tag == model
        assert args.served_model_name is None


@pytest.mark.parametrize(
    "additional", [None, {}, {"other": 1}, {"emovllm": None}, {"emovllm": {}}, {"emovllm": {"circuit": None}}]
)
def test_the_default_model_comes_with_its_circuit(additional: Any) -> None:
    args = filled("--additional-config", json.dumps(additional)) if additional is not None else filled()
    assert args.model == args.model_tag == "the-default-model"
    assert args.served_model_name == [NAME]
    assert args.additional_config["emovllm"] == {"circuit": SHIPPED}
    assert {**args.additional_config, "emovllm": None} == {**(additional or {}), "emovllm": None}


@pytest.mark.parametrize("slow", [True, False])
def test_the_default_model_is_served_in_float32_where_bfloat16_is_slow(
    slow: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve.cpu, "slow_in_bfloat16", lambda: slow)
    assert filled().dtype == ("float32" if slow else "auto")
    assert ("served in float32" in capsys.readouterr().err) == slow
    # Another model, which may be large, is as it was asked for, and one is told.
    assert filled("some/model", "--circuit", SHIPPED).dtype == "auto"
    assert ("--dtype float32 may be several times as fast" in capsys.readouterr().err) == slow
    assert filled("--dtype", "bfloat16").dtype == "bfloat16"
    assert "bfloat16" not in capsys.readouterr().err


def test_what_the_additional_configuration_holds_is_kept_beside_the_circuit_and_the_options() -> None:
    config = {"emovllm": {"allow_untested_vllm": True, "max_strength": 2.0}}
    args = filled("--additional-config", json.dumps(config), "--max-strength", "0.5")
    expected = {"allow_untested_vllm": True, "max_strength": 0.5, "circuit": SHIPPED}
    assert args.additional_config == {"emovllm": expected}
    named = filled("--additional-config", json.dumps({"emovllm": {"circuit": "mine"}}))
    assert named.additional_config == {"emovllm": {"circuit": "mine"}}


def test_what_is_to_be_read_reaches_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("readout: true\nreadout-layer: 7\n")
    expected = {"readout": True, "readout_layer": 7, "circuit": SHIPPED}
    assert filled("--config", str(path)).additional_config == {"emovllm": expected}
    off = {"emovllm": {"readout": False, "circuit": SHIPPED}}
    path.write_text("readout: false\n")
    assert filled("--config", str(path)).additional_config == off
    # A probe alone needs no circuit, and of another model none is asked for.
    alone = filled("some/model", "--probe", str(tmp_path), "--readout-layer", "3")
    assert alone.additional_config == {"emovllm": {"probe": str(tmp_path), "readout_layer": 3}}


def test_a_playground_is_there_only_where_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("playground: true\n")
    for argv in (["--playground"], ["--config", str(path)]):
        assert filled(*argv).additional_config == {"emovllm": {"playground": True, "circuit": SHIPPED}}
    assert "playground" not in filled().additional_config["emovllm"]


def test_limits_in_a_file_reach_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 8123\nmax-strength: 0.5\ndefault-emotion: {anger: 0.5}\nemotions: [anger, fear]\n")
    args = filled("--config", str(path))
    expected = {"max_strength": 0.5, "default_emotion": {"anger": 0.5}, "emotions": ["anger", "fear"]}
    assert args.additional_config == {"emovllm": {**expected, "circuit": SHIPPED}}
    assert args.port == 8123


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([""], "the model's name is empty"),
        (["--model", " "], "the model's name is empty"),
        (["--circuit", ""], "--circuit is empty"),
        (["--readout-layer", "3"], "--readout-layer 3: nothing is read; add --readout, or --probe DIR"),
        (["--readout-layer", "3", "--no-readout"], "--readout-layer 3: nothing is read"),
        (["--additional-config", '{"emovllm": {"readout_layer": 3}}'], "--readout-layer 3: nothing is read"),
        (["--additional-config", "[1]"], "--additional-config must be a JSON object"),
        (["--additional-config", '{"emovllm": true}'], "'emovllm' must be a JSON object"),
    ],
)
def test_what_says_nothing_is_not_taken_for_the_default(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        filled(*argv)
    assert isinstance(caught.value, OptionsError | CircuitError)
