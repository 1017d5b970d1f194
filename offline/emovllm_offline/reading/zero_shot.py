"""The model as a classifier, zero-shot: the likelihood of each label as its answer to a question about a text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from emovllm.progress import Bar
from emovllm.readout import NEUTRAL
from emovllm_offline.data.prompts import has_template
from emovllm_offline.model.choice import ANSWER, EMPTY, Choice, among, log_mean
from emovllm_offline.model.likelihood import Likelihoods
from emovllm_offline.model.load import LoadedModel
from emovllm_offline.reporting.tables import Table
from emovllm_offline.storage.journal import Journal

SETTINGS = "zero-shot.json"
LIKELIHOODS = "zero-shot.jsonl"
INSTRUCTION = (
    "You label short texts with the emotion that their writer expresses. Choose exactly one of these labels: %s."
)
OF_NEUTRAL = f" Choose {NEUTRAL} for a text that expresses none."


class Asked(BaseModel):
    """A line of the journal. text: sha256 of what was shown. totals: log-likelihoods in nats, [directions][labels]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    totals: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model gives the labels, log-likelihoods in nats.

    totals: of the texts, [texts, directions, labels]; the list of labels runs forward in the first direction, backward
    in the second. empty: of texts in which there is nothing to judge, [n, directions, labels].
    """

    totals: np.ndarray
    empty: np.ndarray

    def told(self, directions: Sequence[int] = (0, 1), prior: bool = True) -> np.ndarray:
        """The likeliest label of each text, [texts].

        directions: whose likelihoods are averaged. prior: takes off what the labels get where there is nothing to
        judge.
        """
        scores = among(self.totals[:, list(directions)])
        if prior:
            scores = scores - log_mean(among(self.empty[:, list(directions)]))
        return np.asarray(scores.argmax(-1))


def instruct(labels: Sequence[str], listed: str) -> str:
    return INSTRUCTION % listed + (OF_NEUTRAL if NEUTRAL in labels else "")


def ask(
    loaded: LoadedModel, labels: Sequence[str], texts: Sequence[str], work: Path, inputs: Mapping[str, Any], shown: bool
) -> Answers:
    """Asks the model about each text; an interrupted run goes on with the next.

    inputs: JSON values that tell model and texts apart from others. Raises: StoredError where `work` holds answers of
    others; PromptError.
    """
    choice = Choice(labels, lambda listed: instruct(labels, listed), Likelihoods(loaded.network), loaded.tokenizer)
    settings = {**inputs, "labels": list(labels), "prompt": list(choice.systems)}
    journal = Journal(
        work,
        settings,
        name=SETTINGS,
        files=(LIKELIHOODS,),
        remedy="start anew with --fresh, or give another --work",
        fresh=False,
    )
    lines = journal.lines(LIKELIHOODS, Asked)
    todo = [*EMPTY, *texts]
    with Bar("zero-shot", len(todo), done=len(lines.rows), unit="texts", shown=shown) as bar:
        for text in todo[len(lines.rows) :]:
            totals = choice.totals(text).tolist()
            lines.append(Asked(text=hashlib.sha256(text.encode()).hexdigest()[:16], totals=totals))
            bar.advance()
    totals = np.array([row.totals for row in lines.rows])
    return Answers(totals[len(EMPTY) :], totals[: len(EMPTY)])


def question_table(labels: Sequence[str], tokenizer: Any) -> Table:
    """What the model was asked, with spaces for line breaks."""
    chat = "the tokenizer's own" if has_template(tokenizer) else "plain text: User: and Assistant:, a line each"
    return Table(
        ["part", "text"],
        [
            ["system, labels forward", f"{instruct(labels, ', '.join(labels))} {ANSWER}"],
            ["system, labels backward", f"{instruct(labels, ', '.join(labels[::-1]))} {ANSWER}"],
            ["user", "Text: (on the next line the text)"],
            ["answers compared", ", ".join(labels)],
            ["chat template", chat],
        ],
    )
