from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.errors import StoredError
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.model.choice import ANSWER, Choice
from emovllm_offline.model.load import LoadedModel
from emovllm_offline.reading.zero_shot import LIKELIHOODS, Answers, ask, instruct, question_table

LABELS = ("boredom", "calm", "pride")
TEXTS = ["the dog walks home late", "so very good ! yes", "no letter . bad"]


def test_what_labels_get_where_there_is_nothing_to_judge_is_taken_off() -> None:
    # The first label is favoured by 2 nats whatever is shown.
    totals = np.log([[[0.5, 0.3, 0.2]], [[0.2, 0.2, 0.6]]]) + np.array([2.0, 0, 0])
    empty = np.array([[[2.0, 0, 0]], [[2.0, 0, 0]]])
    answers = Answers(np.repeat(totals, 2, 1), np.repeat(empty, 2, 1))
    assert answers.told(prior=False).tolist() == [0, 0]
    assert answers.told().tolist() == [0, 2]


def test_one_direction_alone_counts_where_it_is_asked_for() -> None:
    totals = np.log([[[0.6, 0.4], [0.1, 0.9]]])
    answers = Answers(totals, np.zeros((1, 2, 2)))
    assert [answers.told(which).tolist() for which in ((0,), (1,), (0, 1))] == [[0], [1], [1]]


def test_the_likelihood_of_an_answer_is_that_of_its_tokens_after_the_question(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    import torch

    answers = ask(loaded, LABELS, TEXTS, tmp_path, {}, shown=False)
    assert answers.totals.shape == (3, 2, 3)
    order = ", ".join(LABELS[::-1])
    question = render(loaded.tokenizer, Frame(system=f"{instruct(LABELS, order)}\n{ANSWER}"), f"Text:\n{TEXTS[1]}")
    answer = [*loaded.tokenizer("calm", add_special_tokens=False)["input_ids"], loaded.tokenizer.eos_token_id]
    with torch.inference_mode():
        scores = torch.log_softmax(loaded.network(torch.tensor([[*question.ids, *answer]])).logits[0].double(), -1)
    expected = sum(float(scores[len(question.ids) - 1 + i, token]) for i, token in enumerate(answer))
    assert answers.totals[1, 1, 1] == pytest.approx(expected, abs=1e-3)


def test_an_interrupted_run_goes_on_with_the_next_text_and_ends_with_the_same_file(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(loaded, LABELS, TEXTS, tmp_path / "whole", {}, shown=False)
    asked: list[str] = []
    totals = Choice.totals

    def stop(self: Choice, text: str) -> Any:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(text)
        return totals(self, text)

    with monkeypatch.context() as patched:
        patched.setattr(Choice, "totals", stop)
        with pytest.raises(KeyboardInterrupt):
            ask(loaded, LABELS, TEXTS, tmp_path / "cut", {}, shown=False)
    again = ask(loaded, LABELS, TEXTS, tmp_path / "cut", {}, shown=False)
    np.testing.assert_array_equal(again.totals, whole.totals)
    assert (tmp_path / "cut" / LIKELIHOODS).read_bytes() == (tmp_path / "whole" / LIKELIHOODS).read_bytes()
    assert not any(text in (tmp_path / "cut" / LIKELIHOODS).read_text() for text in TEXTS)
    with pytest.raises(StoredError, match=r"other settings: labels.*--fresh"):
        ask(loaded, LABELS[:2], TEXTS, tmp_path / "cut", {}, shown=False)


def test_neutral_is_explained_where_it_is_a_label() -> None:
    assert "neutral" not in instruct(LABELS, ", ".join(LABELS))
    both = ("neutral", "pride")
    assert "Choose neutral" in instruct(both, ", ".join(both))


def test_the_question_is_told_as_it_is_asked(loaded: LoadedModel) -> None:
    told = question_table(LABELS, loaded.tokenizer).markdown()
    assert instruct(LABELS, "boredom, calm, pride") in told
    assert instruct(LABELS, "pride, calm, boredom") in told
    assert "the tokenizer's own" in told
