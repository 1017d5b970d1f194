from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from emovllm.errors import DataError
from emovllm_offline.data.texts import Text
from emovllm_offline.reading.corpus import SPLITS, corpus_of, require_enough


def texts(label: str, count: int, *, group: str = "{0}") -> list[Text]:
    """group: {0} stands for the text, {1} for two neighbours."""
    return [Text(f"{label} {i}", (label,), group.format(f"{label} {i}", i // 2)) for i in range(count)]


def test_parts_that_are_given_are_taken_as_they_are() -> None:
    corpus = corpus_of([*texts("joy", 3), *texts("fear", 3)], texts("joy", 2), texts("fear", 1))
    assert corpus.labels == ("fear", "joy")
    assert [len(corpus.of(split)) for split in SPLITS] == [6, 2, 1]
    assert [corpus.labels[corpus.label[place]] for place in corpus.of("test")] == ["fear"]


def test_parts_that_are_not_given_are_held_out_by_whole_groups_with_each_labels_share() -> None:
    data = [*texts("joy", 80, group="j{1}"), *texts("fear", 40, group="f{1}")]
    corpus = corpus_of(data, held_out=0.1)
    groups = [set(corpus.group[corpus.of(split)]) for split in SPLITS]
    assert groups[0] & groups[1] == groups[0] & groups[2] == groups[1] & groups[2] == set()
    assert corpus.counts()["test"] == {"fear": 4, "joy": 8}
    assert sum(map(len, (corpus.of(split) for split in SPLITS))) == 120
    assert corpus.digest() == corpus_of(data, held_out=0.1).digest() != corpus_of(data, held_out=0.1, seed=1).digest()


def test_texts_with_several_labels_are_left_out_and_counted() -> None:
    both = [Text("both", ("joy", "fear"), "both")]
    corpus = corpus_of([*texts("joy", 3), *texts("fear", 3), *both], [*texts("joy", 2), *both], texts("fear", 1))
    assert (corpus.left_out, corpus.labels) == ({"several labels": 2}, ("fear", "joy"))
    assert "both" not in corpus.texts


def test_only_the_labels_that_are_asked_for_count() -> None:
    data = [*texts("joy", 30), *texts("fear", 30), *texts("anger", 3), Text("both", ("joy", "fear"), "both")]
    corpus = corpus_of(data, labels=("fear", "joy"))
    assert (corpus.labels, corpus.left_out) == (("fear", "joy"), {"another label": 3, "several labels": 1})


def test_a_limit_keeps_each_labels_share() -> None:
    corpus = corpus_of([*texts("joy", 60), *texts("fear", 30), *texts("anger", 1)], limit=30, held_out=0.1)
    assert Counter(corpus.labels[i] for i in corpus.label) == {"joy": 20, "fear": 10, "anger": 1}


def test_texts_without_a_reason_to_leave_them_out_stay() -> None:
    corpus = corpus_of([*texts("joy", 3), *texts("fear", 3)], texts("joy", 2), texts("fear", 1))
    kept = corpus.without([None if place % 2 else "too long" for place in range(9)])
    assert kept.texts == corpus.texts[1::2]
    assert np.array_equal(kept.label, corpus.label[1::2])
    assert kept.left_out == {"too long": 5}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (texts("joy", 9), "two labels or more"),
        ([*texts("joy", 9, group="a"), *texts("fear", 9, group="a")], "of one group.*--dev and --test"),
    ],
)
def test_what_no_probe_can_be_trained_on_is_refused(data: list[Text], message: str) -> None:
    with pytest.raises(DataError, match=message):
        corpus_of(data)


def test_a_label_that_lacks_texts_to_learn_from_is_refused_by_name() -> None:
    corpus = corpus_of([*texts("joy", 9), *texts("fear", 1)], texts("joy", 1), texts("joy", 1))
    with pytest.raises(DataError, match="the label fear has 1 texts"):
        require_enough(corpus)
