"""`emovllm push`, before a hub of this machine: what goes there is what comes back, and nothing else goes there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from emovllm.card import LIMIT, model_card
from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit, resolve_circuit, save_circuit
from emovllm.cli import main
from emovllm.errors import CircuitError
from emovllm.probe import load_probe, save_probe
from emovllm.spec import CircuitSpec
from support.hub import Hub, hub_server
from support.probes import random_probe

MODEL = "owner-of/model"
REPOSITORY = "owner/feelings"


@pytest.fixture(scope="module")
def made() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


@pytest.fixture
def hub(made: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty one, which this process takes for Hugging Face's, logged in, and with a cache of its own."""
    from huggingface_hub import constants

    made.repositories.clear()
    made.blobs.clear()
    made.asked.clear()
    for name, value in {
        "ENDPOINT": made.url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        # Its protocol has a server of its own; what is left is Git LFS.
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_writes")
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def folder(tmp_path: Path, circuit: Circuit) -> Path:
    """A circuit with a probe, among what else lies about."""
    folder = tmp_path / "mine"
    of_model = circuit.spec.model.model_copy(update={"id": MODEL})
    save_circuit(replace(circuit, spec=circuit.spec.model_copy(update={"model": of_model})), folder)
    save_probe(random_probe(("anger", "calm"), (1,), of_model), folder)
    (folder / "notes.txt").write_text("not for others")
    (folder / "report").mkdir()
    (folder / "report" / "circuit.json").write_text("{}")
    return folder


def files(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    there = hub.repositories[REPOSITORY]
    return {name: data for name, data in there.commits[there.branches[branch]].items() if name != ".gitattributes"}


def front_matter(card: str) -> dict[str, Any]:
    facts: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return facts


def test_what_is_pushed_is_what_a_server_loads(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), REPOSITORY]) == 0
    said = capsys.readouterr().out
    digest = load_circuit(folder).digest()
    assert digest[:16] in said
    sha = hub.repositories[REPOSITORY].branches["main"]
    assert f"{hub.url}/{REPOSITORY}/commit/{sha}" in said
    assert f"emovllm serve {MODEL} --circuit {REPOSITORY}\n" in said
    assert set(files(hub)) == {"circuit.json", "circuit.safetensors", "probe.safetensors", "README.md"}
    assert [files(hub)[name] for name in ("circuit.json", "circuit.safetensors", "probe.safetensors")] == [
        (folder / name).read_bytes() for name in ("circuit.json", "circuit.safetensors", "probe.safetensors")
    ]
    # One commit beside the first: nobody meets half of it.
    assert hub.repositories[REPOSITORY].messages == ["initial commit", f"emovllm circuit {digest[:16]}"]
    assert load_circuit(REPOSITORY).digest() == digest
    there = resolve_circuit(f"{REPOSITORY}@{sha}")
    assert load_probe(there).digest == load_probe(folder).digest
    # The card stays on the hub.
    assert sorted(path.name for path in there.iterdir()) == ["circuit.json", "circuit.safetensors", "probe.safetensors"]


def test_the_command_goes_by_the_environment_alone(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_TOKEN, in processes of their own: pushed, then shown from there."""
    command = str(Path(sys.executable).with_name("emovllm"))
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_writes"}

    def run(*words: str) -> str:
        return subprocess.run([command, *words], env=env, capture_output=True, text=True, check=True).stdout

    run("push", str(folder), REPOSITORY, "--private", "--message", "first of all")
    assert hub.repositories[REPOSITORY].private
    assert hub.repositories[REPOSITORY].messages[-1] == "first of all"
    assert load_circuit(folder).digest()[:16] in run("show", REPOSITORY)


def test_a_branch_is_made_and_served_by_its_name(hub: Hub, folder: Path, circuit: Circuit) -> None:
    assert main(["push", str(folder), REPOSITORY]) == 0
    first = load_circuit(folder).digest()
    louder = tuple(emotion.model_copy(update={"recommended": 1.5}) for emotion in circuit.spec.emotions)
    save_circuit(replace(circuit, spec=circuit.spec.model_copy(update={"emotions": louder})), folder)
    second = load_circuit(folder).digest()
    for _ in range(2):
        assert main(["push", str(folder), REPOSITORY, "--revision", "loud/er"]) == 0
    assert load_circuit(REPOSITORY).digest() == first
    assert load_circuit(f"{REPOSITORY}@loud/er").digest() == second != first
    # The second time there was nothing new.
    assert len(hub.repositories[REPOSITORY].messages) == 3
    with pytest.raises(CircuitError, match=rf"{REPOSITORY}@nowhere: neither a folder"):
        load_circuit(f"{REPOSITORY}@nowhere")


def test_a_card_of_ones_own_goes_there_and_stays(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "---\nlicense: apache-2.0\n---\n\n# Mine\n"
    (folder / "README.md").write_text(own)
    assert main(["push", str(folder), REPOSITORY]) == 0
    assert files(hub)["README.md"].decode() == own
    (folder / "README.md").unlink()
    assert main(["push", str(folder), REPOSITORY]) == 0
    assert files(hub)["README.md"].decode() == own
    assert "README.md: the repository's own is kept" in capsys.readouterr().out


def test_a_probe_that_the_folder_has_no_longer_is_removed(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), REPOSITORY]) == 0
    (folder / "probe.safetensors").unlink()
    assert main(["push", str(folder), REPOSITORY]) == 0
    assert "probe.safetensors" not in files(hub)
    assert "removed, for the folder has none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "circuit.json").unlink(), "circuit.json: No such file"),
        (lambda folder: (folder / "circuit.safetensors").write_bytes(b"x" * 64), "its sha256 is not the one"),
        (lambda folder: (folder / "probe.safetensors").write_bytes(b"x" * 64), "probe.safetensors: "),
        (lambda folder: shutil.rmtree(folder), "no such circuit folder"),
    ],
)
def test_what_is_no_circuit_goes_nowhere(
    hub: Hub, folder: Path, spoil: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    assert main(["push", str(folder), REPOSITORY]) == 2
    assert message in capsys.readouterr().err
    assert not hub.asked


def test_a_probe_of_another_model_goes_nowhere(
    hub: Hub, folder: Path, circuit: Circuit, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = circuit.spec.model.model_copy(update={"hidden_size": 12, "id": "other/model"})
    save_probe(random_probe(("anger", "calm"), (1,), wider), folder)
    assert main(["push", str(folder), REPOSITORY]) == 2
    assert "of other/model, which is not the circuit's model" in capsys.readouterr().err
    assert not hub.asked


def test_a_folder_of_a_repository_s_name_is_not_fetched_to_be_pushed(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), REPOSITORY]) == 0
    assert main(["push", REPOSITORY, "owner/copy"]) == 2
    assert f"{REPOSITORY}: no such circuit folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["feelings", "owner/feelings@main", "a/b/c", "https://host/a", "../b"])
def test_a_name_that_no_repository_can_have_is_refused(
    hub: Hub, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), name]) == 2
    assert "not a repository's id, OWNER/NAME" in capsys.readouterr().err
    assert not hub.asked


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        ("", REPOSITORY, "not logged in to Hugging Face: set HF_TOKEN"),
        ("hf_expired", REPOSITORY, "the hub does not take the token"),
        ("hf_reads", REPOSITORY, "the token may not write there"),
        ("hf_writes", "others/feelings", "the right to write, and to do so for others"),
    ],
)
def test_who_may_not_write_is_told_so(
    hub: Hub,
    folder: Path,
    token: str,
    repository: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(folder), repository]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not hub.repositories


def test_no_way_to_the_hub_is_told_so(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(folder), REPOSITORY]) == 1
    assert f"{REPOSITORY}: could not be uploaded to http://127.0.0.1:9" in capsys.readouterr().err


def test_nothing_private_goes_into_a_public_repository(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), REPOSITORY]) == 0
    before = files(hub)
    (folder / "README.md").write_text("# secret\n")
    assert main(["push", str(folder), REPOSITORY, "--private"]) == 2
    assert "is there, and public" in capsys.readouterr().err
    assert files(hub) == before


def test_a_card_that_the_hub_refuses_stops_all(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text("---\nbase_model: no id at all\n---\n")
    assert main(["push", str(folder), REPOSITORY]) == 1
    assert "Invalid metadata in README.md" in capsys.readouterr().err
    assert not files(hub)


def test_the_card_says_what_the_circuit_says_of_itself(default_spec: Circuit) -> None:
    card = model_card(default_spec, REPOSITORY, revision="v2", probe=True)
    facts = front_matter(card)
    assert facts == {
        "library_name": "emovllm",
        "base_model": default_spec.spec.model.id,
        "tags": ["emovllm", "emotion", "steering"],
    }
    assert f"emovllm serve {default_spec.spec.model.id} --circuit {REPOSITORY}@v2 --readout" in card
    for emotion in default_spec.spec.emotions:
        assert f"| {emotion.name} | {emotion.recommended:g} | {emotion.maximal:g} |" in card
    made = default_spec.spec.provenance
    calibration = made["calibration"]
    assert f"`{calibration['command']}`; judge local; 21 messages, data `{calibration['data']['sha256'][:12]}`" in card
    assert f"`{made['command']}`; 40 scenarios, data `{made['dataset']['sha256'][:12]}`; styles fewshot" in card
    assert card.count("- Refinement: ") == len(made["refinements"]) == 3
    assert default_spec.digest() in card
    assert "no evaluation" in card
    assert card.endswith(f"\n- {LIMIT}\n")


@pytest.fixture
def default_spec() -> Circuit:
    from emovllm.models import shipped_circuits

    return load_circuit(shipped_circuits() / "SmolLM2-135M-Instruct")


def test_a_card_of_anything_in_the_provenance_is_well_formed(circuit: Circuit) -> None:
    strange = {
        "command": "emovllm discover `x` | <script>\n---\nlicense: mine",
        "dataset": ["no", "mapping"],
        "styles": "paper",
        "refinements": [7, {"command": {"deep": 1}}, {"messages": 3}],
        "calibration": {"judge": "local", "data": {"messages": [1]}},
    }
    content = json.loads(circuit.spec.model_dump_json()) | {"provenance": strange}
    card = model_card(replace(circuit, spec=CircuitSpec.model_validate(content)), REPOSITORY)
    # No model of the hub's: the front matter names none, and the hub would refuse what is no id.
    assert front_matter(card) == {"library_name": "emovllm", "tags": ["emovllm", "emotion", "steering"]}
    assert "emovllm serve MODEL --circuit" in card
    assert "`emovllm discover 'x' / (script) --- license: mine`" in card
    assert "- Refinement: 3 messages." in card
    assert "Calibration" not in card
