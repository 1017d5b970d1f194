"""The circuit folder: exact round trip, and everything else refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from emovllm.circuit import Circuit
from emovllm.circuit_files import (
    MAX_JSON_BYTES,
    MAX_TENSORS_BYTES,
    load_circuit,
    replace_spec,
    resolve_circuit,
    save_circuit,
)
from emovllm.errors import CircuitError
from support.circuits import components


def test_a_saved_circuit_round_trips_exactly(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path)
    loaded = load_circuit(tmp_path)
    assert loaded.spec == circuit.spec.model_copy(update={"tensors_sha256": loaded.spec.tensors_sha256})
    for kind in ("neurons", "heads"):
        for name in circuit.names:
            for part in ("layer", "index", "delta"):
                saved = getattr(getattr(circuit, kind)[name], part)
                read = getattr(getattr(loaded, kind)[name], part)
                assert read.dtype == saved.dtype
                assert np.array_equal(read, saved)
    assert loaded.fingerprint.keys() == circuit.fingerprint.keys()
    assert loaded.digest() == circuit.digest()


def test_saving_twice_writes_the_same_bytes(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path / "a")
    save_circuit(load_circuit(tmp_path / "a"), tmp_path / "b")
    for name in ("circuit.json", "circuit.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_directions_are_optional_and_round_trip(tmp_path: Path, circuit: Circuit) -> None:
    values = np.random.default_rng(3).standard_normal((2, 3, 8))
    values = (values / np.linalg.norm(values, axis=2, keepdims=True)).astype(np.float32)
    values[0, 1] = 0  # an emotion may lack a direction in a layer
    directed = replace(circuit, directions=dict(zip(circuit.names, values, strict=True)))
    save_circuit(directed, tmp_path)
    loaded = load_circuit(tmp_path)
    assert all(np.array_equal(loaded.directions[name], directed.directions[name]) for name in circuit.names)
    assert loaded.digest() == directed.digest() != circuit.digest()
    # What a circuit without them is known by does not depend on there being such a thing.
    assert replace(directed, directions={}).digest() == circuit.digest()
    assert not any("directions" in name for name in circuit.tensors())


def test_replacing_the_spec_keeps_the_tensors(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path)
    before = load_circuit(tmp_path)
    tensors = (tmp_path / "circuit.safetensors").read_bytes()
    louder = tuple(emotion.model_copy(update={"recommended": 1.5}) for emotion in before.spec.emotions)
    replace_spec(tmp_path, before.spec.model_copy(update={"emotions": louder}))
    after = load_circuit(tmp_path)
    assert [emotion.recommended for emotion in after.spec.emotions] == [1.5, 1.5]
    assert (tmp_path / "circuit.safetensors").read_bytes() == tensors


def edit_json(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "circuit.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = folder / "circuit.safetensors"
    tensors = dict(safetensors.numpy.load(path.read_bytes()))
    change(tensors)
    data = safetensors.numpy.save(tensors)
    path.write_bytes(data)
    edit_json(folder, lambda spec: spec.update(tensors_sha256=hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=4), "format_version 4; this emovllm reads 1, 2, 3"),
        (lambda d: d.update(format_version=3), "model.layers belongs to format_version 2"),
        (lambda d: d.update(format_version=2), "model.layers belongs to format_version 2"),
        (lambda d: d.pop("format_version"), "format_version None"),
        (lambda d: d.pop("model"), "model: Field required"),
        (lambda d: d.update(surprise=1), "surprise: Extra inputs"),
        (lambda d: d["emotions"][0].update(name="none"), "no emotion can be called 'none', which asks for the plain"),
        (lambda d: d["emotions"][0].update(name="mix"), "no emotion can be called 'mix'"),
        (lambda d: d["emotions"][0].update(name="a+b"), "emotions.0.name: String should match"),
        (lambda d: d["emotions"].clear(), "emotions"),
        (lambda d: d["emotions"].append(d["emotions"][0]), "named twice"),
        (lambda d: d["emotions"][0].update(recommended=9), "recommended 9.0 is above maximal"),
        (lambda d: d["emotions"][0].update(maximal=float("inf")), "emotions.0.maximal"),
        (lambda d: d["emotions"][0].update(name="../x"), "emotions.0.name"),
        (lambda d: d["model"].update(num_hidden_layers=2), "outside 0..1"),
        (lambda d: d["model"].update(head_dim=5), "delta: expected float32"),
        (lambda d: d.update(tensors_sha256="0" * 64), "its sha256 is not the one"),
    ],
)
def test_a_wrong_json_is_refused_with_the_reason(
    tmp_path: Path, circuit: Circuit, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    save_circuit(circuit, tmp_path)
    edit_json(tmp_path, change)
    with pytest.raises(CircuitError, match=r"circuit|anger") as caught:
        load_circuit(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("anger.neurons.delta"), "has no anger.neurons.delta"),
        (lambda t: t.update(extra=np.zeros(1)), "unknown tensors: extra"),
        (lambda t: t["anger.neurons.delta"].__setitem__(0, np.nan), "not finite"),
        (lambda t: t["anger.neurons.index"].__setitem__(0, 10), "outside 0..9"),
        (lambda t: t["anger.neurons.index"].__setitem__(0, -1), "outside 0..9"),
        (lambda t: t["anger.neurons.index"].__setitem__(0, 1), "listed twice"),
        (lambda t: t.update({"anger.neurons.layer": np.zeros(2, np.int32)}), "anger.neurons.layer"),
        (lambda t: t.update({"anger.neurons.index": np.zeros(3, np.int64)}), "anger.neurons.index"),
        (lambda t: t.update({"calm.heads.delta": np.zeros((1, 4))}), "calm.heads.delta: expected float32 [k, 4]"),
        (lambda t: t.pop("fingerprint.mlp.0"), "fingerprint does not cover"),
        (lambda t: t["fingerprint.mlp.0"].__setitem__(0, np.inf), "not finite"),
    ],
)
def test_wrong_tensors_are_refused_with_the_reason(
    tmp_path: Path, circuit: Circuit, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    save_circuit(circuit, tmp_path)

    def writable(tensors: dict[str, np.ndarray]) -> None:
        tensors.update({name: tensor.copy() for name, tensor in tensors.items()})
        change(tensors)

    edit_tensors(tmp_path, writable)
    with pytest.raises(CircuitError) as caught:
        load_circuit(tmp_path)
    assert message in str(caught.value)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path)
    tensors = tmp_path / "circuit.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-7])
    with pytest.raises(CircuitError, match="truncated, altered"):
        load_circuit(tmp_path)
    tensors.unlink()
    with pytest.raises(CircuitError, match=r"circuit\.safetensors: No such file"):
        load_circuit(tmp_path)
    tensors.write_bytes(b"\x80\x04pickle")
    edit_json(tmp_path, lambda d: d.update(tensors_sha256=hashlib.sha256(b"\x80\x04pickle").hexdigest()))
    with pytest.raises(CircuitError, match=r"circuit\.safetensors"):
        load_circuit(tmp_path)
    for text in ("", "[]", "{", '{"format_version": NaN}', "[" * 100_000):
        (tmp_path / "circuit.json").write_text(text)
        with pytest.raises(CircuitError, match=r"circuit\.json"):
            load_circuit(tmp_path)
    (tmp_path / "circuit.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CircuitError, match="not UTF-8"):
        load_circuit(tmp_path)


@pytest.mark.parametrize(
    ("name", "limit"), [("circuit.json", MAX_JSON_BYTES), ("circuit.safetensors", MAX_TENSORS_BYTES)]
)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, circuit: Circuit, name: str, limit: int
) -> None:
    save_circuit(circuit, tmp_path)
    # Sparse: a file of a terabyte that takes no space, and that nobody could read.
    os.truncate(tmp_path / name, 2**40)
    with pytest.raises(CircuitError, match=f"{name}: larger than {limit} bytes"):
        load_circuit(tmp_path)


@pytest.mark.parametrize("name", ["circuit.json", "circuit.safetensors"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, circuit: Circuit, name: str) -> None:
    save_circuit(circuit, tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CircuitError, match=f"{name}: not a file"):
        load_circuit(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CircuitError, match=f"{name}: not a file"):
        load_circuit(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(CircuitError, match=f"{name}: "):
        load_circuit(tmp_path)


PATHS = ["../../etc/passwd", "/etc/passwd", "a/../../b", "file:///etc/passwd", "~/.ssh/id_rsa", "\\\\host\\share"]


@pytest.mark.parametrize("path", PATHS)
def test_no_name_in_a_circuit_is_a_path(
    tmp_path: Path, circuit: Circuit, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names_an_emotion(spec: dict[str, Any]) -> None:
        spec["emotions"][0]["name"] = path

    save_circuit(circuit, tmp_path / "emotion")
    edit_json(tmp_path / "emotion", names_an_emotion)
    with pytest.raises(CircuitError, match=r"emotions\.0\.name"):
        load_circuit(tmp_path / "emotion")
    save_circuit(circuit, tmp_path / "field")
    edit_json(tmp_path / "field", lambda spec: spec.update(tensors_file=path))
    with pytest.raises(CircuitError, match="tensors_file: Extra inputs"):
        load_circuit(tmp_path / "field")
    # Where any text may stand, it is text: the only files that are opened are the two.
    save_circuit(circuit, tmp_path / "model")
    edit_json(tmp_path / "model", lambda spec: (spec["model"].update(id=path), spec["provenance"].update(source=path)))
    opened: list[str] = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **kwargs: (opened.append(self.name), original(self, *args))[1]
    )
    assert load_circuit(tmp_path / "model").spec.model.id == path
    assert opened == ["circuit.json", "circuit.safetensors"]


def test_a_linked_file_is_read_as_a_circuit_and_nothing_of_it_told(tmp_path: Path, circuit: Circuit) -> None:
    # The Hugging Face cache is made of links, so that links as such are no reason to refuse.
    save_circuit(circuit, tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("circuit.json", "circuit.safetensors"):
        (linked / name).symlink_to(tmp_path / "real" / name)
    assert load_circuit(linked).digest() == circuit.digest()
    for secret in ("root:x:0:0:hunter2", '{"password": "hunter2"}', '{"format_version": 1, "model": "hunter2"}'):
        (tmp_path / "secret").write_text(secret)
        (linked / "circuit.json").unlink()
        (linked / "circuit.json").symlink_to(tmp_path / "secret")
        with pytest.raises(CircuitError) as caught:
            load_circuit(linked)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("source", ["..", "../..", "a/../b", "/no/such", "https://host/circuit", "org/name/more"])
def test_a_source_is_a_folder_or_a_repository_and_nothing_else(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail(f"asks for {args}"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CircuitError, match=r"no such circuit folder|No such file"):
        load_circuit(source)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path)
    good = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for data in (
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**24) + b"{}",
        struct.pack("<Q", len(good)) + good,
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        b"",
    ):
        (tmp_path / "circuit.safetensors").write_bytes(data)
        edit_json(tmp_path, lambda spec, data=data: spec.update(tensors_sha256=hashlib.sha256(data).hexdigest()))
        with pytest.raises(CircuitError, match=r"circuit\.safetensors"):
            load_circuit(tmp_path)


def test_truncations_and_flipped_bits_are_refused_wherever_they_are(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path)
    path = tmp_path / "circuit.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CircuitError, match="truncated, altered"):
            load_circuit(tmp_path)
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with pytest.raises(CircuitError, match="truncated, altered"):
            load_circuit(tmp_path)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(CircuitError, match="no/such/folder: no such circuit folder"):
        load_circuit("no/such/folder")


def test_an_interrupted_save_does_not_load(tmp_path: Path, circuit: Circuit, monkeypatch: pytest.MonkeyPatch) -> None:
    save_circuit(circuit, tmp_path)
    quieter = Circuit(
        circuit.spec,
        dict(circuit.neurons, anger=components([], [])),
        circuit.heads,
        {key: value for key, value in circuit.fingerprint.items() if key == "attn.2"},
    )

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_circuit(quieter, tmp_path)
    with pytest.raises(CircuitError):
        load_circuit(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_circuit_whose_json_an_editor_saved_again_loads(tmp_path: Path, circuit: Circuit) -> None:
    save_circuit(circuit, tmp_path)
    text = (tmp_path / "circuit.json").read_bytes()
    (tmp_path / "circuit.json").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert load_circuit(tmp_path).digest() == circuit.digest()


@pytest.fixture
def hub(monkeypatch):
    """What is asked of Hugging Face, which has nothing."""
    asked = []

    def snapshot_download(name, **options):
        asked.append(name)
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize(
    "source", ["circuits/typo", "./typo", "../typo", "/nowhere/typo", "~/no-typo", "typo", "a/b/c"]
)
def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub(source, hub, tmp_path, monkeypatch):
    (tmp_path / "circuits" / "good").mkdir(parents=True)
    (tmp_path / "circuits" / "good" / "circuit.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CircuitError, match=f"^{re.escape(source)}: no such circuit folder") as caught:
        resolve_circuit(source)
    assert ("circuits has good" in str(caught.value)) == (source == "circuits/typo")
    assert not hub


def test_what_may_be_a_repository_is_told_with_both_attempts(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CircuitError, match=r"owner/name: neither a folder \(.*owner/name does not exist\) nor a Hugging"
    ):
        resolve_circuit("owner/name")
    assert hub == ["owner/name"]


@pytest.mark.parametrize(
    ("source", "asked"),
    [("owner/name", ("owner/name", None)), ("owner/name@v1.2", ("owner/name", "v1.2"))]
    + [(f"owner/name@{revision}", ("owner/name", revision)) for revision in ("refs/pr/3", "0123abcd" * 5)],
)
def test_a_repository_may_be_asked_for_at_a_revision(source, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, revision, **_: str(tmp_path / repr((name, revision)))
    )
    assert resolve_circuit(source) == tmp_path / repr(asked)


@pytest.mark.parametrize("source", ["owner/name@", "owner@v1/name", "owner/name@-x", "owner/name@a b", "name@v1"])
def test_what_names_no_revision_is_not_looked_for_on_the_hub(source, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CircuitError, match="no such circuit folder"):
        resolve_circuit(source)
    assert not hub
