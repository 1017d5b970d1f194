"""The judge by likelihoods, on a tiny random model whose scores are computed anew, one whole sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emovllm.errors import JudgeError, PromptError
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.judges.judge import CachedJudge, Verdict, make_judge
from emovllm_offline.judges.llm import LLMJudge
from emovllm_offline.model.choice import EMPTY
from emovllm_offline.model.likelihood import Likelihoods

EMOTIONS = ("pride", "boredom", "calm")
TEXTS = ["the dog walks home late", "so very good ! yes", "no letter , no bone . bad"]


@pytest.fixture
def network(tiny):
    network = tiny("llama")
    network.generation_config.eos_token_id = network.config.eos_token_id
    return network


@pytest.fixture
def judge(network, tokenizer) -> LLMJudge:
    return LLMJudge(EMOTIONS, Likelihoods(network), tokenizer)


def expected(network, tokenizer, judge: LLMJudge, text: str) -> np.ndarray:
    """[labels]: log-probabilities among the labels, the mean of both orders, without the prior taken off."""
    totals = np.zeros(len(judge.labels))
    for system in judge.choice.systems:
        prompt = render(tokenizer, Frame(system=system), f"Text:\n{text}").ids
        for place, label in enumerate(judge.labels):
            answer = [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ids = torch.tensor([[*prompt, *answer]])
            with torch.inference_mode():
                scores = torch.log_softmax(network(input_ids=ids).logits[0].double(), -1)
            totals[place] += sum(float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / 2
    return totals - np.logaddexp.reduce(totals)


def test_probabilities_are_those_of_the_labels_less_what_says_nothing(network, tokenizer, judge):
    assert judge.labels == ("boredom", "calm", "pride", "neutral")
    prior = np.log(np.mean([np.exp(expected(network, tokenizer, judge, text)) for text in EMPTY], 0))
    for text in TEXTS:
        scores = expected(network, tokenizer, judge, text) - prior
        wanted = np.exp(scores - np.logaddexp.reduce(scores))
        assert judge.probabilities(text) == pytest.approx(wanted, abs=1e-4)
    assert np.std([judge.probabilities(text) for text in TEXTS], axis=0).max() > 1e-3


def test_the_target_and_the_order_of_the_emotions_decide_nothing(network, tokenizer, judge):
    other = LLMJudge(EMOTIONS[::-1], Likelihoods(network), tokenizer)
    assert other.config == judge.config
    labels = [verdict.label for verdict in judge.judge(TEXTS, ["calm"] * 3)]
    assert [verdict.label for verdict in other.judge(TEXTS, ["pride"] * 3)] == labels
    assert [verdict.match for verdict in judge.judge(TEXTS, labels)] == [True] * 3
    assert not any(verdict.match for verdict in judge.judge(TEXTS, ["joy"] * 3))


def test_an_empty_text_matches_nothing(judge):
    assert judge.judge(["  "], ["calm"]) == [Verdict(False, None, "empty reply")]


def test_another_model_or_other_emotions_are_another_judge(tiny, network, tokenizer, judge):
    other = tiny("llama")
    with torch.no_grad():
        other.lm_head.weight *= 1.01
    configs = [
        dict(judge.config),
        dict(LLMJudge(EMOTIONS, Likelihoods(other), tokenizer).config),
        dict(LLMJudge(EMOTIONS[:2], Likelihoods(network), tokenizer).config),
    ]
    assert all(configs.count(config) == 1 for config in configs)


def test_it_is_made_by_name_from_a_folder(network, tokenizer, judge, tmp_path):
    network.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    made = make_judge("llm", EMOTIONS, model=str(tmp_path / "m"), cache=tmp_path / "judged.jsonl")
    assert isinstance(made, CachedJudge)
    assert made.config["weights"] == judge.config["weights"]
    assert made.judge(TEXTS, ["calm"] * 3) == judge.judge(TEXTS, ["calm"] * 3)
    # Each verdict is kept when it comes.
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) >= len(TEXTS)


def test_without_a_model_it_says_what_it_needs(tmp_path):
    with pytest.raises(JudgeError, match="needs --judge-model"):
        make_judge("llm", EMOTIONS)
    with pytest.raises(PromptError, match="cannot be loaded"):
        make_judge("llm", EMOTIONS, model=str(tmp_path))
    with pytest.raises(JudgeError, match="cannot be read"):
        make_judge("llm", EMOTIONS, model=str(tmp_path / "nowhere"))
