"""What a command line and a configuration file ask of `emovllm serve`: nothing of it is dropped without a word."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from emovllm.errors import OptionsError
from emovllm_server.arguments import _asks_for_the_default, parse

# Each of our options, as a file and as a command line may give it, and what comes of it.
OPTIONS: dict[str, tuple[str, list[str], Any]] = {
    "circuit": ("circuit: some/folder", ["--circuit", "other"], ["some/folder"]),
    "emotions": ("emotions: anger,fear", ["--emotions", "joy"], "anger,fear"),
    "max_strength": ("max-strength: 0.5", ["--max-strength", "0.7"], 0.5),
    "default_emotion": ("default-emotion: anger", ["--default-emotion", "joy"], "anger"),
    "default_schedule": (
        "default-schedule: {hold: 20, half_life: 40}",
        ["--default-schedule", '{"to": 8}'],
        '{"hold": 20, "half_life": 40}',
    ),
    "emotion_capacity": ("emotion-capacity: 12", ["--emotion-capacity", "14"], 12),
    "admin_key": ("admin-key: secret", ["--admin-key", "other"], "secret"),
    "circuit_root": ("circuit-root: /srv", ["--circuit-root", "/other"], "/srv"),
    "injection_kernel": ("injection-kernel: mm", ["--injection-kernel", "fused"], "mm"),
    "readout": ("readout: true", ["--no-readout"], True),
    "probe": ("probe: some/folder", ["--probe", "other"], "some/folder"),
    "readout_layer": ("readout-layer: 7", ["--readout-layer", "9"], 7),
    "guard": ('guard: ["anger>0.9:stop"]', ["--guard", "fear>0.8:flag"], ["anger>0.9:stop"]),
    "playground": ("playground: true", ["--no-playground"], True),
}


def read(tmp_path: Path, text: str, *argv: str) -> tuple[argparse.Namespace, argparse.Namespace]:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return parse([*argv, "--config", str(path)], "serve")


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_in_the_file_is_in_force(tmp_path: Path, name: str) -> None:
    line, _, value = OPTIONS[name]
    options, args = read(tmp_path, f"port: 8123\n{line}\nmax-model-len: 512\n", "some/model")
    assert getattr(options, name) == value
    assert (args.port, args.max_model_len, args.model_tag) == (8123, 512, "some/model")
    # vLLM logs the arguments that it is given.
    assert not hasattr(args, name)
    underscored, _ = read(tmp_path, line.replace("-", "_"))
    assert getattr(underscored, name) == value


def test_each_option_of_ours_is_tried_above() -> None:
    assert set(vars(parse([], "serve")[0])) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_line_goes_before_the_file(tmp_path: Path, name: str) -> None:
    line, arguments, _ = OPTIONS[name]
    alone, _ = parse(arguments, "serve")
    both, args = read(tmp_path, f"{line}\nport: 8123\n", *arguments, "--port", "9000")
    assert getattr(both, name) == getattr(alone, name) is not None
    assert args.port == 9000


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("circuit: [a=x/a, b=x/b]", "circuit", ["a=x/a", "b=x/b"]),
        ("circuit:\n  a: x/a\n  b: x/b", "circuit", ["a=x/a", "b=x/b"]),
        ("readout: false", "readout", False),
        ("emotions: [anger, b/fear]", "emotions", "anger,b/fear"),
        ("emotions:\n- anger", "emotions", "anger"),
        ("default-emotion: {anger: 0.5, fear: -0.5}", "default_emotion", '{"anger": 0.5, "fear": -0.5}'),
    ],
)
def test_lists_and_maps_are_written_as_yaml_has_them(tmp_path: Path, text: str, name: str, value: Any) -> None:
    options, args = read(tmp_path, text)
    assert getattr(options, name) == value
    assert args.model_tag is None


@pytest.mark.parametrize(
    "arguments",
    [["--max_strength", "0.5"], ["--max_strength=0.5"], ["--max-str", "0.5"], ["--max-strength=0.5"]],
)
def test_an_option_counts_however_it_is_spelt(arguments: list[str]) -> None:
    assert parse(["some/model", *arguments], "serve")[0].max_strength == 0.5


def test_a_file_given_with_an_equals_sign_is_read(tmp_path: Path) -> None:
    (tmp_path / "serve.yml").write_text("max-strength: 0.5\nport: 8123\n")
    options, args = parse([f"--config={tmp_path / 'serve.yml'}"], "serve")
    assert (options.max_strength, args.port) == (0.5, 8123)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-strength: lots", "argument --max-strength: invalid float value: 'lots'"),
        ("readout: maybe", "argument --readout/--no-readout: ignored explicit argument 'maybe'"),
        ("readout-layer: last", "argument --readout-layer: invalid int value: 'last'"),
        ("max-strength: false", "unrecognized arguments: --no-max-strength"),
        ("circuit: null", "argument --circuit: expected one argument"),
        ("emotion-capacity: [1]", "argument --emotion-capacity: invalid int value"),
        ("- max-strength", "give one option a line"),
        ("a: [", "not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionsError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'serve.yaml'}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no/such.yaml"], "no/such.yaml: No such file"),
        (["--config", "serve.json"], "ends in .yaml or .yml"),
        (["--config", "a.yaml", "--config", "b.yaml"], "is given once"),
        (["--config"], "takes one file"),
        (["--max-strength", "lots"], "argument --max-strength: invalid float value"),
    ],
)
def test_options_that_cannot_be_used_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        parse(arguments, "serve")


def test_an_unknown_option_is_refused_in_the_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(tmp_path, "max-strenght: 0.5")
    assert ended.value.code == 2
    assert "unrecognized arguments: --max-strenght" in capsys.readouterr().err


def test_an_empty_file_asks_for_nothing(tmp_path: Path) -> None:
    options, args = read(tmp_path, "# nothing yet\n")
    assert not any(vars(options).values())
    assert args.model_tag is None


@pytest.mark.parametrize("command", ["serve", "run-batch"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "some/model", ""])
def test_a_model_may_be_asked_for_in_several_ways(tmp_path: Path, command: str, model: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(f"model: '{model}'\n")
    for argv in ([model], ["--model", model], [f"--model={model}"], ["--config", str(path)]):
        assert parse(argv, command)[1].model_tag == model, argv
    assert parse(["--model", "mine", "--config", str(path)], command)[1].model_tag == "mine"
    assert parse([], command)[1].model_tag is None


@pytest.mark.parametrize(
    ("line", "default"),
    [
        ("", True),
        ("--port 8123 --readout --max-model-len=512", True),
        ("some/model --port 8123", False),
        ("gpt2", False),
        ("--port 8123 gpt2", False),
        ("--readout some/model", False),
        ("--model gpt2", False),
        ("--model=gpt2", False),
        ("--config serve.yaml", False),
        ("--help=port", False),
        ("-h", False),
    ],
)
def test_the_default_model_is_converted_beside_where_no_other_is_asked_for(line: str, default: bool) -> None:
    assert _asks_for_the_default(line.split()) is default
