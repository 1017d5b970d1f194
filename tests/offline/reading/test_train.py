"""Probes from texts to their folder, on a tiny random model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from emovllm.errors import ProbeError
from emovllm.fingerprint import fingerprint_entries
from emovllm.probe import load_probe, mark
from emovllm_offline.data.texts import Text
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.spec import model_spec
from emovllm_offline.reading.corpus import Corpus, corpus_of
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.results import Results
from emovllm_offline.reading.settings import Fitting, Reading
from emovllm_offline.reading.states import states_of
from emovllm_offline.reading.train import ProbeData, Settings, Trained, require_same, run, save, train

ENDINGS = {"calm": ("quiet", "well"), "pride": ("proud", "good"), "boredom": ("dull", "no")}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Texts that a probe can tell by their last word, in most cases."""
    draw = random.Random(0)
    words = ["the", "a", "dog", "cat", "walks", "runs", "home", "late", "early", "and", "then"]
    rows = []
    for number in range(480):
        label = draw.choice(list(ENDINGS))
        shown = label if draw.random() < 0.9 else draw.choice(list(ENDINGS))
        begin = " ".join(draw.choices(words, k=draw.randint(1, 6)))
        rows.append(Text(f"{begin} {draw.choice(ENDINGS[shown])}", (label,), f"scenario {number // 4}"))
    return corpus_of(rows)


def trained(decoder: Decoder, tokenizer: Any, corpus: Corpus, work: Path, **settings: Any) -> Trained:
    return train(decoder, tokenizer, corpus, work, Settings(**settings), model_id="tiny/model", shown=False)


def test_what_is_read_with_the_saved_probe_is_what_the_report_says(
    decoder: Decoder, tokenizer: Any, corpus: Corpus, tmp_path: Path
) -> None:
    save(trained(decoder, tokenizer, corpus, tmp_path / "work"), tmp_path / "out")
    probe, results = load_probe(tmp_path / "out"), Results.load(tmp_path / "out")
    assert (probe.spec.model.id, probe.spec.labels, probe.digest) == (
        "tiny/model",
        tuple(sorted(ENDINGS)),
        results.digest,
    )
    at = corpus.of("test")
    states = states_of(decoder, reads_of(tokenizer, [corpus.texts[place] for place in at], "last", False))
    for of in results.layers:
        told = probe.at(of.layer).logits(states[of.layer]).argmax(1)
        assert of.test.f1.value == pytest.approx(f1_score(corpus.label[at], told, average="macro"))
        if of.layer == results.layer:
            assert of == results.best
            assert np.array_equal(results.confusion, confusion_matrix(corpus.label[at], told))
    assert results.best.test.f1.value > results.best.test.control.value + 0.2
    assert results.layer == probe.spec.layer == int(np.argmax([of.dev.f1.value for of in results.layers]))


def test_a_probe_knows_its_model_by_what_all_its_projections_write(
    decoder: Decoder, tokenizer: Any, corpus: Corpus, tmp_path: Path
) -> None:
    probe = trained(decoder, tokenizer, corpus, tmp_path).probe
    assert len(probe.fingerprint) == 2 * len(decoder.layers)
    weight = decoder.layers[1].down_proj.weight.detach().numpy()  # type: ignore[union-attr]
    expected = fingerprint_entries(mark(weight.shape[1]) @ weight.T)
    np.testing.assert_allclose(probe.fingerprint["mlp.1"], expected, rtol=1e-5)
    assert probe.spec.model == model_spec(decoder, "tiny/model")


@pytest.mark.parametrize("reading", [Reading(), Reading(chat=True), Reading(pooling="mean", batch_tokens=64)])
def test_two_equal_runs_write_the_same_bytes(
    decoder: Decoder, tokenizer: Any, corpus: Corpus, tmp_path: Path, reading: Reading
) -> None:
    for name in ("one", "other"):
        save(trained(decoder, tokenizer, corpus, tmp_path / f"{name}.work", reading=reading), tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other")]
    assert files[0] == files[1]
    assert set(files[0]) == {"probe.safetensors", "results.json", "report.md", "report.html"}
    assert load_probe(tmp_path / "one").spec.pooling == reading.pooling


def test_the_same_states_are_fitted_another_way_without_the_model(
    decoder: Decoder, tokenizer: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(decoder, tokenizer, corpus, tmp_path)
    monkeypatch.setattr(Decoder, "forward", None)
    again = trained(decoder, tokenizer, corpus, tmp_path, fitting=Fitting(weights="none", penalties=(0.1,)))
    assert {of.penalty for of in again.results.layers} == {0.1}
    assert again.probe.digest != first.probe.digest
    assert trained(decoder, tokenizer, corpus, tmp_path).probe.data() == first.probe.data()


def test_texts_that_are_too_long_are_left_out_and_counted(
    decoder: Decoder, tokenizer: Any, corpus: Corpus, tmp_path: Path
) -> None:
    results = trained(decoder, tokenizer, corpus, tmp_path / "work", reading=Reading(max_tokens=6)).results
    longer = sum(len(text.split()) > 6 for text in corpus.texts)
    assert results.about["data"]["left out"] == {"more than 6 tokens": longer}
    save(Trained(trained(decoder, tokenizer, corpus, tmp_path / "usual").probe, results), tmp_path)
    assert f"Left out: {longer} texts (more than 6 tokens)." in (tmp_path / "report.md").read_text()


def test_the_report_has_a_row_for_each_layer_and_says_where_texts_are_few(
    decoder: Decoder, tokenizer: Any, corpus: Corpus, tmp_path: Path
) -> None:
    probe = trained(decoder, tokenizer, corpus, tmp_path / "work", command="emovllm probe train")
    save(probe, tmp_path)
    markdown, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    best = probe.results.best
    assert f"| {best.layer} * | {best.depth:.2f} |" in markdown
    assert str(best.test.f1) in markdown
    assert f"| {(best.layer + 1) % 4} |" in markdown
    assert "Few test texts: boredom (" in markdown
    assert page.count("data:image/png;base64,") == 2
    assert "emovllm probe train" in page
    assert json.loads((tmp_path / "results.json").read_text())["format"] == "emovllm-probe-results"


def test_a_circuit_of_another_model_gets_no_probe(decoder: Decoder) -> None:
    ours = model_spec(decoder, "tiny/model")
    require_same(ours, ours, "circuit")
    other = ours.model_copy(update={"id": "tiny/other", "vocab_size": 7})
    with pytest.raises(ProbeError, match=r"another model \(id tiny/other there, tiny/model here; vocab_size 7 "):
        require_same(other, ours, "circuit")


def test_a_circuit_that_is_no_folder_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    rows = [{"text": f"{label} {number}", "label": label} for label in ("joy", "fear") for number in range(30)]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ProbeError, match="missing: no folder"):
        run("no model", ProbeData(data), tmp_path / "out", Settings(), into=tmp_path / "missing")
