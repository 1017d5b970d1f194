"""From a model to a refined circuit and its page, by the commands that the README gives, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from emovllm.circuit_files import load_circuit
from emovllm.probe import load_probe
from emovllm_offline.comparison.rows import Comparison, Value
from emovllm_offline.reading.compare import ZERO_SHOT, Compared
from emovllm_offline.reading.separate import Separated
from emovllm_offline.reading.shift import Shifts
from emovllm_offline.validation.results import Validation
from support.walk import EMOTIONS, Walk


def test_each_command_takes_what_the_last_one_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walk = Walk(tmp_path)
    elicited, circuit, refined = (tmp_path / name for name in ("elicited", "circuit", "refined"))

    def printed() -> str:
        return capsys.readouterr().out

    told = ("--data", walk.data, "--style", walk.style)
    assert walk("elicit", walk.model, *told, "--minimum", "3", "--out", elicited) == 0
    # Two scenarios of three events, every other reply of which shows no fear.
    assert f"{elicited}: 3 of 6 scenario-events are complete" in printed()

    ran = ("--replies", elicited, "--max-tokens", "1024", "--out", tmp_path / "apart")
    assert walk("probe separate", walk.model, *told, *ran) == 0
    assert printed().startswith(f"{tmp_path / 'apart'}: ")
    assert "| own turn |" in (tmp_path / "apart" / "report.md").read_text()

    for stage in ("activations", "heads", "importance"):
        assert walk.discover(circuit, "--replies", elicited, "--stage", stage) == 0
        assert printed() == f"{circuit}.work: {stage} done\n"
        assert not circuit.exists()
    assert walk.discover(circuit, "--replies", elicited, "--stage", "circuit") == 0
    found = load_circuit(circuit)
    assert found.names == EMOTIONS
    assert found.spec.provenance["groups"] == 3
    counts = [sum(map(len, units.values())) // 2 for units in (found.neurons, found.heads)]
    assert f"{circuit}: anger, fear; about {counts[0]} neurons and {counts[1]} heads each" in printed()

    assert (
        walk("validate", circuit, "--model", walk.model, *told, "--neurons", "2", "--heads", "1", "--seeds", "2") == 0
    )
    best = max(Validation.load(tmp_path / "circuit.work").macro_f1())
    assert f"2 scenarios; best probe F1 {best:.3f}; `emovllm report {circuit}` draws it" in printed()

    assert walk("report", circuit) == 0
    page = Path(printed().strip())
    assert page == tmp_path / "circuit.work" / "report.html"
    assert found.digest()[:16] in page.read_text()

    assert walk.refine(circuit, refined) == 0
    provenance = load_circuit(refined).spec.provenance["refinements"][-1]
    assert provenance["from"] == found.digest()
    before, after = ([sum(row.values()) / 2 for row in provenance["held-out loss"]][at] for at in (0, -1))
    assert f"held-out replies at {before:.2f} nats per token before, {min(before, after):.2f} after" in printed()

    probe = tmp_path / "probe"
    assert walk("probe train", walk.model, "--data", walk.texts, "--out", probe, "--into", refined) == 0
    assert printed().startswith(f"{probe}: 2 labels; the layer with the best macro F1")
    assert load_probe(refined).digest == load_probe(probe).digest
    assert "| layer |" in (probe / "report.md").read_text()
    # It is none of the circuit's two files.
    assert load_circuit(refined).spec.provenance["refinements"][-1] == provenance

    common = ("--probe", probe, "--data", walk.texts, "--limit", "8")
    assert walk("probe compare", walk.model, *common, "--out", tmp_path / "compared") == 0
    assert printed().startswith(f"{tmp_path / 'compared'}: 8 texts, 2 labels: macro F1")
    assert "McNemar" in (tmp_path / "compared" / "report.md").read_text()

    assert walk("probe prompts", walk.model, *common, "--system", "fear=Be afraid.", "--out", tmp_path / "below") == 0
    assert printed().startswith(f"{tmp_path / 'below'}: 8 messages below 1 system prompts, read at layer")
    assert "| fear | Be afraid. |" in (tmp_path / "below" / "report.md").read_text()

    usual = ("--max-tokens", "12", "--off-after", "3", "--circuit", refined, "--out", tmp_path / "lasted")
    assert walk("probe persist", walk.model, *common, *usual) == 0
    assert printed().startswith(f"{tmp_path / 'lasted'}: 8 messages, replies of 12 tokens, read at layer")
    assert "| off after 3 | 10 |" in (tmp_path / "lasted" / "report.md").read_text()

    left = [tmp_path / name for name in ("probe", "compared", "below", "apart", "circuit", "refined")]
    assert walk("compare", *left, "--out", tmp_path / "beside") == 0
    assert printed().splitlines()[-1] == str(tmp_path / "beside" / "report.html")
    beside = {of.kind: of.rows for of in Comparison.load(tmp_path / "beside").tables}
    answered = Compared.load(tmp_path / "compared").of(ZERO_SHOT).ahead
    assert answered is not None
    assert beside["probe train"][0].figures["probe ahead by"] == Value.of(answered)
    assert [row.part for row in beside["probe prompts"]] == ["fear"]
    moved = Shifts.load(tmp_path / "below")
    assert beside["probe prompts"][0].figures["its logit"] == Value.of(moved.named[0].at(moved.layer).changes["fear"])
    separated = Separated.load(tmp_path / "apart")
    assert {row.part: row.figures["d, centred"] for row in beside["probe separate"]} == {
        way: Value.of(separated.best(way).centred.effect) for way in separated.ways
    }
    validated, unvalidated = beside["circuit"]
    assert (validated.run, unvalidated.run) == ("model (circuit)", "model (refined)")
    assert validated.figures["states F1"] == Value.of(best)
    apart = validated.figures["apart"]
    assert apart is not None
    assert 0 <= apart.value <= 1
    assert set(unvalidated.figures.values()) == {None}
    assert validated.facts["neurons"] == f"{len(found.neurons['anger'])}"
    # What one kind of run does not say, another does.
    (size,) = {row.size for rows in beside.values() for row in rows}
    assert size is not None
    assert size.parameters

    assert walk("show", refined) == 0
    assert f"digest {load_circuit(refined).digest()[:16]}" in printed()
