"""System prompts: packaged, from a file, and given in a word."""

from __future__ import annotations

import json

import pytest

from emovllm.errors import DataError
from emovllm_offline.data.system_prompts import load_system_prompts

LABELS = ("anger", "fear", "pride")


def test_of_the_packaged_prompts_those_are_taken_that_name_a_label_and_the_control():
    prompts = load_system_prompts((), LABELS)
    assert list(prompts) == ["assistant", "anger", "fear"]
    assert "furious" in prompts["anger"]
    assert (
        len(load_system_prompts((), ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"])) == 8
    )


def test_files_and_words_are_taken_in_their_order(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"fear": "You are afraid.", "weather": "It rains."}))
    assert load_system_prompts([str(file), "pride=You = proud."], LABELS) == {
        "fear": "You are afraid.",
        "weather": "It rains.",
        "pride": "You = proud.",
    }


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["fear=a", "fear=b"], "two system prompts are called 'fear'"),
        (["none=a", "fear=a"], "'none': that is what they are compared with"),
        (["weather=It rains."], r"the name of a label of the probe \(anger, fear, pride\): name one"),
        (["fear="], "expected NAME=PROMPT"),
        (["nowhere.json"], "nowhere.json"),
        (["{}"], "0: |at least 1 item"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, given, why):
    if given == ["{}"]:
        (tmp_path / "empty.json").write_text("{}")
        given = [str(tmp_path / "empty.json")]
    with pytest.raises(DataError, match=why):
        load_system_prompts(given, LABELS)


def test_without_a_label_of_theirs_the_packaged_ones_are_no_help():
    with pytest.raises(DataError, match="give --system"):
        load_system_prompts((), ("pride", "boredom"))
