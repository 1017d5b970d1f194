"""Likelihoods by shared prompts equal those of each whole sequence by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from emovllm_offline.evaluation.folder import Likelihood
from emovllm_offline.evaluation.likelihood import Question, answer
from emovllm_offline.evaluation.plan import Key
from emovllm_offline.model import likelihood
from emovllm_offline.model.likelihood import Likelihoods


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_shared_prompts_and_padding_change_nothing(
    tiny: Callable[[str], Any], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "BATCH", 3)
    model = tiny(family)
    random = np.random.default_rng(0)
    prompts = [tuple(random.integers(3, 128, length).tolist()) for length in (9, 70)]
    todo = [
        Question(Key(f"{p}.{i}", "none"), "neutral", prompts[p], tuple(random.integers(3, 128, length).tolist()))
        for i, length in enumerate((1, 30, 7, 2, 12))
        for p in (0, 1)
    ]
    answers: dict[Key, Likelihood] = {}
    session = answer(Likelihoods(model), todo, lambda likelihood: answers.update({likelihood.key: likelihood}))
    assert (session.requests, session.tokens) == (10, 2 * 52)
    heads = Likelihoods(model)
    for question in todo:
        [total] = heads.totals(question.prompt, [question.tokens], head=5)
        assert -total / len(question.tokens) == pytest.approx(answers[question.key].nll, abs=1e-4)
        ids = torch.tensor([[*question.prompt, *question.tokens]])
        with torch.inference_mode():
            scores = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
        steps = range(len(question.prompt), ids.shape[1])
        expected = -np.mean([float(scores[i - 1, ids[0, i]]) for i in steps])
        assert answers[question.key].nll == pytest.approx(expected, abs=1e-4)
