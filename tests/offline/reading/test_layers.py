"""Probes of states whose signal is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm_offline.data.texts import Text
from emovllm_offline.reading import layers
from emovllm_offline.reading.corpus import Corpus, corpus_of
from emovllm_offline.reading.layers import Probes, fit_layers, shuffle
from emovllm_offline.reading.results import by_label, measure
from emovllm_offline.reading.settings import Fitting
from emovllm_offline.storage.planes import Planes

LABELS = ("anger", "fear", "joy")
HIDDEN, LAYERS, PLANTED = 16, 3, 1
USUAL = Fitting()


@pytest.fixture
def corpus() -> Corpus:
    rows = [Text(f"{i}", (LABELS[i % 3],), f"{i}") for i in range(900)]
    return corpus_of(rows[:500], rows[500:700], rows[700:])


@pytest.fixture
def planes(corpus: Corpus, tmp_path: Path) -> Planes:
    """Noise, but for a direction of each label in one of three layers."""
    random = np.random.default_rng(0)
    states = random.normal(size=(LAYERS, len(corpus.texts), HIDDEN))
    states[PLANTED] += random.normal(size=(3, HIDDEN))[corpus.label] * 0.8
    planes = Planes(tmp_path / "states.f32", states.shape, {"model": "planted"})
    planes.append(states)
    return planes


def fit(planes: Planes, corpus: Corpus, work: Path, fitting: Fitting = USUAL) -> Probes:
    order = np.arange(len(corpus.texts))
    return fit_layers(planes, order, corpus, fitting, work, inputs=planes.settings, device="cpu", shown=False)


def test_a_planted_signal_is_found_in_its_layer_and_its_control_is_at_chance(
    planes: Planes, corpus: Corpus, tmp_path: Path
) -> None:
    probes = fit(planes, corpus, tmp_path)
    measured = measure(probes, corpus, seed=0)
    assert measured.layer == PLANTED
    scores = [of.test for of in measured.layers]
    assert scores[PLANTED].f1.low > 0.7
    for number, of in enumerate(scores):
        # Three labels that are equally frequent.
        assert abs(of.control.value - 1 / 3) < 0.1
        assert (of.selectivity.low > 0) == (number == PLANTED)
    matrix, labels = by_label(probes, corpus, PLANTED)
    assert matrix.sum() == 200
    assert [one.texts for one in labels] == matrix.sum(1).tolist()
    assert scores[PLANTED].f1.value == pytest.approx(np.mean([one.f1 for one in labels]))


def test_weaker_penalties_are_tried_until_the_dev_loss_rises(planes: Planes, corpus: Corpus, tmp_path: Path) -> None:
    penalties = (0.0001, 10.0, 0.01, 1.0, 0.1)
    probes = fit(planes, corpus, tmp_path, Fitting(penalties=penalties))
    for losses, penalty in zip(probes["loss"], probes["penalty"], strict=True):
        tried = int(np.isfinite(losses).sum())
        assert penalty == sorted(penalties, reverse=True)[int(np.argmin(losses))]
        assert (np.diff(losses[: tried - 1]) < 0).all()
        assert tried == len(penalties) or losses[tried - 1] >= losses[tried - 2]
    # The less there is to learn, the less is learnt.
    assert probes["penalty"][0] > probes["penalty"][PLANTED]


def test_states_are_of_the_texts_that_their_order_says(planes: Planes, corpus: Corpus, tmp_path: Path) -> None:
    straight = fit(planes, corpus, tmp_path / "straight")
    order = np.random.default_rng(1).permutation(len(corpus.texts))
    mixed = Planes(tmp_path / "mixed.f32", planes.shape, {"model": "mixed"})
    mixed.append(np.stack([planes.plane(layer)[order] for layer in range(LAYERS)]))
    again = fit_layers(
        mixed, order, corpus, Fitting(), tmp_path / "mixed", inputs=mixed.settings, device="cpu", shown=False
    )
    for name in straight.arrays:
        assert np.array_equal(straight[name], again[name]), name


def test_an_interrupted_fit_goes_on_and_ends_with_the_same_probes(
    planes: Planes, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(planes, corpus, tmp_path / "whole")
    original: Any = layers._fit_layer
    fitted: list[int] = []

    def stop(*given: object) -> None:
        if given[1] == 2:
            raise KeyboardInterrupt
        original(*given)

    monkeypatch.setattr("emovllm_offline.storage.checkpoint.time.monotonic", iter(range(0, 10_000, 60)).__next__)
    with monkeypatch.context() as patched:
        patched.setattr(layers, "_fit_layer", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(planes, corpus, tmp_path / "cut")
    monkeypatch.setattr(layers, "_fit_layer", lambda *given: (fitted.append(given[1]), original(*given))[1])
    again = fit(planes, corpus, tmp_path / "cut")
    assert fitted == [2]
    for name in whole.arrays:
        assert np.array_equal(whole[name], again[name]), name


def test_another_way_of_fitting_reads_the_same_states(planes: Planes, corpus: Corpus, tmp_path: Path) -> None:
    strong, usual = (fit(planes, corpus, tmp_path, Fitting(penalties=penalties)) for penalties in ((100.0,), (0.01,)))
    assert np.abs(strong["weight"][PLANTED]).max() < 0.1 * np.abs(usual["weight"][PLANTED]).max()


def test_labels_are_shuffled_within_groups_that_have_several() -> None:
    labels = np.tile([0, 1, 2], 40)
    groups = np.repeat(np.arange(40), 3).astype(str)
    shuffled = shuffle(labels, groups, 0)
    assert sorted(map(tuple, np.sort(shuffled.reshape(-1, 3), 1).tolist())) == [(0, 1, 2)] * 40
    assert 0.2 < (shuffled == labels).mean() < 0.5


def test_labels_are_shuffled_among_all_where_groups_have_one_each() -> None:
    labels = np.repeat([0, 1], 60)
    shuffled = shuffle(labels, np.repeat(np.arange(40), 3).astype(str), 0)
    assert np.bincount(shuffled).tolist() == [60, 60]
    assert 0.3 < (shuffled == labels).mean() < 0.7
