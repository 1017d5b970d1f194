import json

import pytest

from emovllm.errors import DataError
from emovllm_offline.data.sev import check_sev, digest, expand, load_sev

THEMES = 8
LINE = {
    "skeleton_id": "x_00",
    "theme": "X",
    "scenario": "One.",
    "event": {"positive": "Two.", "neutral": "Three.", "negative": "Four."},
}


def written(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("name", "each"), [("sev-small", 5), ("sev-train", 15), ("sev-dev", 5), ("sev", 20), ("sev-test", 20)]
)
def test_packaged_data_has_as_many_scenarios_of_each_theme(name, each):
    records = load_sev(name)
    themes = [record.theme for record in records]
    assert len(set(themes)) == THEMES
    assert all(themes.count(theme) == each for theme in themes)
    assert len(expand(records)) == 3 * THEMES * each


def test_packaged_data_passes_the_checks():
    # Together, so that no sentence of the test set is one of the other.
    assert check_sev(load_sev("sev") + load_sev("sev-test")) == []


def test_the_small_set_is_the_beginning_of_the_whole_one():
    assert load_sev("sev-small") == load_sev() == load_sev("sev-train")[:40]
    assert load_sev("sev-train") + load_sev("sev-dev") == load_sev("sev")


def test_no_scenario_of_the_test_set_is_near_one_of_the_other():
    def words(record):
        return set(record.scenario.lower().strip(".").split())

    for test in load_sev("sev-test"):
        for record in load_sev("sev"):
            shared = words(test) & words(record)
            assert len(shared) / len(words(test) | words(record)) < 0.4, (test.skeleton_id, record.skeleton_id)


def test_user_message_is_the_scenario_then_the_event(tmp_path):
    items = expand(load_sev(written(tmp_path, LINE)))
    assert [item.user for item in items] == ["One.\nTwo.", "One.\nThree.", "One.\nFour."]
    assert [item.valence for item in items] == ["positive", "neutral", "negative"]


def test_checks_find_each_fault():
    good = load_sev()[:2]
    events = good[0].event
    faults = {
        "words, expected 15 to 25": {"scenario": "Too short."},
        "emotion words: furious": {"scenario": good[0].scenario.replace(" the ", " furious ", 1)},
        "not ASCII": {"scenario": good[0].scenario.replace("a", "\u00e4", 1)},
        "the same sentence as": {"scenario": events.neutral},
        "share too few words": {"event": events.model_copy(update={"positive": good[1].scenario})},
    }
    for expected, change in faults.items():
        complaints = check_sev([good[0].model_copy(update=change)])
        assert any(expected in complaint for complaint in complaints), expected


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({**LINE, "skeleton_id": "x_01", "scenario": ""}, "line 3: scenario: "),
        (
            {**LINE, "skeleton_id": "x_01", "event": {"positive": "Two.", "neutral": "Three."}},
            "line 3: event.negative: ",
        ),
        ({**LINE, "skeleton_id": "x_01", "mood": "sour"}, "line 3: mood: "),
        (LINE, "line 3: skeleton_id 'x_00' was used before"),
        ("{broken\n", "line 3: Invalid JSON"),
    ],
)
def test_bad_line_is_named(tmp_path, second, message):
    path = written(tmp_path, LINE, "\n", second)
    with pytest.raises(DataError, match=r"mine\.jsonl") as caught:
        load_sev(path)
    assert message in str(caught.value)


def test_file_without_records_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no records"):
        load_sev(written(tmp_path, "\n"))
    with pytest.raises(DataError, match="No such file"):
        load_sev(tmp_path / "missing.jsonl")


def test_digest_ignores_layout_but_not_content(tmp_path):
    first = digest(load_sev(written(tmp_path, LINE)))
    assert digest(load_sev(written(tmp_path, "\n", dict(reversed(LINE.items()))))) == first
    assert digest(load_sev(written(tmp_path, {**LINE, "scenario": "Other."}))) != first
