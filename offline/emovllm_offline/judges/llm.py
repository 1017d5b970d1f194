"""A judge that is any Hugging Face causal language model: a blind forced choice by the likelihood of each label.

The labels are listed in both directions, and what the model gives each where there is nothing to judge is taken off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emovllm.errors import UnusableJudge
from emovllm.readout import NEUTRAL
from emovllm_offline.judges.blind import blind_labels, likeliest
from emovllm_offline.judges.judge import EMPTY_REPLY, Verdict, in_order, judge, option
from emovllm_offline.judges.openai import LABELLING

if TYPE_CHECKING:
    from emovllm_offline.model.likelihood import Likelihoods


@dataclass(frozen=True, slots=True)
class Options:
    """model: a folder or id; device: of torch."""

    model: str | None = option(
        None, "the judge's model: its name at its endpoint; for hf and llm a folder or id", metavar="M"
    )
    device: str = option("cpu", "torch device of judges that run in this process")


@judge("llm", "a local language model that is not told the emotion", Options)
def make(emotions: Sequence[str], options: Options) -> LLMJudge:
    """Raises: JudgeError."""
    if options.model is None:
        raise UnusableJudge("--judge llm needs --judge-model: a folder or Hugging Face id of a causal language model")
    return LLMJudge.load(emotions, options.model, options.device)


class LLMJudge:
    """Must choose among the emotions and neutral, without being told the target."""

    name = "llm"
    blind = True

    def __init__(
        self, emotions: Sequence[str], likelihoods: Likelihoods, tokenizer: Any, public_id: str = "a model"
    ) -> None:
        """public_id: the model's name in results.

        Raises: PromptError where the tokenizer's chat template refuses the question.
        """
        from emovllm_offline.model.choice import EMPTY, Choice
        from emovllm_offline.model.decoder import sampled_digest

        self.labels = blind_labels(emotions)
        self.choice = Choice(self.labels, lambda listed: LABELLING % (listed, NEUTRAL), likelihoods, tokenizer)
        self.config: Mapping[str, Any] = {
            "model": public_id,
            "weights": sampled_digest(likelihoods.network.parameters()),
            "prompt": hashlib.sha256("\n".join([*self.choice.systems, *EMPTY]).encode()).hexdigest(),
        }
        self._prior = self.choice.prior()

    @classmethod
    def load(cls, emotions: Sequence[str], model: str, device: str = "cpu") -> LLMJudge:
        """model: a folder or a Hugging Face id. Raises: JudgeError where it cannot be read; PromptError."""
        from emovllm.models import public_model_id
        from emovllm_offline.model.likelihood import Likelihoods
        from emovllm_offline.model.load import load_tokenizer

        try:
            tokenizer = load_tokenizer(model)
            likelihoods = Likelihoods.load(model, device)
        except (OSError, ValueError) as error:
            raise UnusableJudge(f"the judge's model {model!r} cannot be read: {str(error).splitlines()[0]}") from None
        return cls(emotions, likelihoods, tokenizer, public_model_id(model))

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """An empty text matches nothing, and has no label."""
        return in_order(self, texts, targets)

    def judge_each(self, texts: Sequence[str], targets: Sequence[str], done: Callable[[int, Verdict], None]) -> None:
        """As `judge`; `done` is given each verdict as it comes, with the place of its text."""
        for place, (text, target) in enumerate(zip(texts, targets, strict=True)):
            if text.strip():
                done(place, likeliest(self.labels, self.probabilities(text).tolist(), target))
            else:
                done(place, EMPTY_REPLY)

    def probabilities(self, text: str) -> np.ndarray:
        """[labels], in the order of `labels`."""
        from emovllm_offline.model.choice import among

        scores = among(self.choice.totals(text)) - self._prior
        return np.asarray(np.exp(scores - np.logaddexp.reduce(scores)))
