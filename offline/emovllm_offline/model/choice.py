"""A forced choice by a causal language model: the log-likelihood of each label as its whole answer.

Nothing is sampled and nothing parsed. Models favour what stands first in a list and some words over others whatever
they are shown; so the labels are listed in both directions, and what the model gives each label where there is nothing
to judge can be taken off (Zhao et al., arXiv 2102.09690).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.model.likelihood import Likelihoods

# Asks for what is compared.
ANSWER = "Answer with that label alone."
# Of texts that express nothing.
EMPTY = ("", "N/A", "[text]")


class Choice:
    """Asks about texts. systems: the instructions, one for each direction in which the labels are listed."""

    def __init__(
        self, labels: Sequence[str], instruct: Callable[[str], str], likelihoods: Likelihoods, tokenizer: Any
    ) -> None:
        """instruct: the instruction, given the list of labels.

        Raises: PromptError where the tokenizer's chat template refuses the question.
        """
        self.labels = tuple(labels)
        self.systems = tuple(f"{instruct(', '.join(order))}\n{ANSWER}" for order in (self.labels, self.labels[::-1]))
        self._likelihoods, self._tokenizer = likelihoods, tokenizer
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._answers = [(*tokenizer(label, add_special_tokens=False)["input_ids"], *end) for label in self.labels]
        self._heads = {system: self._head(system) for system in self.systems}

    def totals(self, text: str) -> np.ndarray:
        """Log-likelihoods of the labels in nats, [systems, labels]."""
        return np.array([self._totals(system, head, text) for system, head in self._heads.items()])

    def prior(self) -> np.ndarray:
        """What the labels get where there is nothing to judge, log-probabilities [labels]."""
        return log_mean([among(self.totals(text)) for text in EMPTY])

    def _prompt(self, system: str, text: str) -> tuple[int, ...]:
        return render(self._tokenizer, Frame(system=system), f"Text:\n{text}").ids

    def _totals(self, system: str, head: tuple[int, ...], text: str) -> list[float]:
        prompt = self._prompt(system, text)
        return self._likelihoods.totals(prompt, self._answers, len(head) if prompt[: len(head)] == head else 0)

    def _head(self, system: str) -> tuple[int, ...]:
        """The tokens that prompts begin with whatever the text is."""
        one, other = (self._prompt(system, text) for text in ("a", "'1"))
        return one[: next(place for place, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) == 2)]


def among(totals: np.ndarray) -> np.ndarray:
    """Log-probabilities among the labels, the mean over the systems: [..., systems, labels] to [..., labels]."""
    means = np.mean(totals, -2)
    return np.asarray(means - np.logaddexp.reduce(means, -1, keepdims=True))


def log_mean(scores: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The logarithm of the mean probability: [n, labels] to [labels]."""
    return np.asarray(np.logaddexp.reduce(scores) - np.log(len(scores)))
