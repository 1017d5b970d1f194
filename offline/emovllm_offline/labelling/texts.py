"""What there is to label: texts in an order that tells nothing, and the labels as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from emovllm.errors import DataError
from emovllm_offline.data.labelled import Labelled, load_labelled
from emovllm_offline.judges.agreement import cohens_kappa
from emovllm_offline.storage.journal import Lines
from emovllm_offline.storage.json_lines import read_json_lines


class _Line(BaseModel):
    """A text to label, or a reply as `elicit` and `evaluate` write them, with what else stands in the line."""

    model_config = ConfigDict(extra="allow", frozen=True)

    text: str | None = None
    reply: str | None = None


def read_texts(paths: Sequence[Path]) -> dict[str, str]:
    """Each different text of JSON lines with `text` or `reply`, and its file's name. Empty ones are left out.

    Raises: DataError.
    """
    texts: dict[str, str] = {}
    for path in paths:
        for number, line in read_json_lines(path, _Line, DataError):
            text = line.text if line.text is not None else line.reply
            if text is None:
                raise DataError(f"{path}, line {number}: neither text nor reply is in it")
            if text.strip():
                texts.setdefault(text, path.stem)
    if not texts:
        raise DataError(f"{', '.join(map(str, paths))}: no text in it")
    return texts


class Labelling:
    """One pass of one person. The order of texts is drawn from the seed: it tells nothing of how they were made."""

    def __init__(
        self, texts: dict[str, str], labels: Sequence[str], out: Path, *, limit: int | None = None, seed: int = 0
    ) -> None:
        """texts: with the register of each; out: lines {text, label, register}, which are taken up where they are.

        Raises: StoredError where `out` holds something else; DataError where it holds labels that are not to be chosen.
        """
        self.labels = tuple(labels)
        self._lines = Lines(out, Labelled)
        if unknown := sorted({name for row in self._lines.rows for name in row.label} - {*labels}):
            raise DataError(f"{out}: has labels that are not to choose from: {', '.join(unknown)}; take another file")
        order = sorted(texts, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())[:limit]
        self._texts = {text: texts[text] for text in order}
        done = {row.text for row in self._lines.rows}
        self._todo = [text for text in order if text not in done]

    @property
    def total(self) -> int:
        return len(self._texts)

    @property
    def done(self) -> int:
        return self.total - len(self._todo)

    def next(self) -> str | None:
        """The text whose turn it is; None after the last."""
        return self._todo[0] if self._todo else None

    def say(self, text: str, label: str) -> None:
        """Labels the text whose turn it is. Raises: DataError where it is another's turn, or there is no such label."""
        if label not in self.labels:
            raise DataError(f"no label {label!r}: choose from {', '.join(self.labels)}")
        if text != self.next():
            raise DataError("this text is labelled already: the page is an old one; load it again")
        self._lines.append(Labelled(text=text, label=(label,), register=self._texts[text]))
        self._todo.pop(0)

    def undo(self) -> None:
        """Takes the last label of this pass back; nothing where there is none."""
        rows = self._lines.rows
        if rows and rows[-1].text in self._texts:
            self._todo.insert(0, rows[-1].text)
            self._lines.keep(len(rows) - 1)


class Agreement(BaseModel):
    """Of two passes over the same texts: those that are in both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: int
    equal: float
    kappa: float | None


def compare(one: Path, other: Path) -> Agreement:
    """How far two passes agree: the share of equal labels, and Cohen's kappa. Raises: DataError."""
    first, second = ({row.text: row.label[0] for row in load_labelled(path)} for path in (one, other))
    both = [text for text in first if text in second]
    if not both:
        raise DataError(f"{one} and {other} have no text in common")
    equal, kappa = cohens_kappa([first[text] for text in both], [second[text] for text in both])
    return Agreement(texts=len(both), equal=equal, kappa=kappa)
