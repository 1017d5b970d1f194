"""Texts with their labels, for probes: JSON lines, the table of GoEmotions, or replies that `emovllm elicit` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from emovllm.errors import DataError
from emovllm.files import read_text
from emovllm.probe import Label
from emovllm_offline.storage.json_lines import Id, parse_json_lines

# What data sets call the emotions that our styles name otherwise.
SYNONYMS = {"joy": "happiness"}
_LABELS = "labels.txt"


@dataclass(frozen=True, slots=True)
class Text:
    """labels: one or several, in the order of the file. group: texts of one group are no independent evidence."""

    text: str
    labels: tuple[str, ...]
    group: str


def _tidy(value: object) -> object:
    """A label as a probe spells it."""
    if not isinstance(value, str):
        return value
    name = value.strip().lower()
    return SYNONYMS.get(name, name)


_Label = Annotated[Label, BeforeValidator(_tidy)]
_Filled = Annotated[str, Field(min_length=1, pattern=r"\S")]
_LABEL: TypeAdapter[str] = TypeAdapter(_Label)


class _Line(BaseModel):
    """A labelled text; what else stands in the line is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: _Filled
    label: _Label | None = None
    labels: Annotated[tuple[_Label, ...], Field(min_length=1)] | None = None
    group: Id | None = None

    @model_validator(mode="before")
    @classmethod
    def _either(cls, value: object) -> object:
        """`label` may hold several, as labelled texts of other commands have them."""
        if not isinstance(value, dict):
            return value
        if (value.get("label") is None) == (value.get("labels") is None):
            raise ValueError("expected `label`, or `labels`, and not both")
        if isinstance(value.get("label"), list):
            return {**value, "labels": value["label"], "label": None}
        return value

    def texts(self) -> list[Text]:
        labels = self.labels if self.labels is not None else (self.label,) if self.label is not None else ()
        return [_text(self.text, labels, self.group)]


class _Elicited(BaseModel):
    """A reply of `emovllm elicit`: a text of the emotion where its judge found it there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    item: Id
    emotion: _Label
    reply: str
    match: Literal[0, 1] | None = None

    @model_validator(mode="after")
    def _accepted_is_filled(self) -> _Elicited:
        if self.match and not self.reply.strip():
            raise ValueError("an accepted reply is empty")
        return self

    def texts(self) -> list[Text]:
        # Events of one scenario are variations of one another.
        return [_text(self.reply, (self.emotion,), self.item.rpartition(".")[0] or self.item)] if self.match else []


def load_texts(path: str | Path) -> list[Text]:
    """Reads one of three forms:

    - JSON lines {text, label or labels, group?};
    - a .tsv as GoEmotions has them: text, labels with commas between, and an id, which may be left out; labels are
      names, or numbers from 0, which a file labels.txt beside it names, one a line;
    - replies.jsonl of `emovllm elicit`: the replies that its judge accepted, in the groups of their scenarios.

    Labels are lower case, and joy is happiness, as elsewhere. A text without a group is one with its equals.
    Raises: DataError, naming the file, the line and what is wrong there.
    """
    path = Path(path)
    content = read_text(path, DataError)
    if path.suffix == ".tsv":
        texts = list(_table(path, content))
    else:
        kind: type[_Line | _Elicited] = _Elicited if _is_elicited(content) else _Line
        texts = [text for _, line in parse_json_lines(path, content, kind, DataError) for text in line.texts()]
    if not texts:
        raise DataError(f"{path}: no texts in it" + (" that their judge accepted" if content.strip() else ""))
    return texts


def label_names(texts: Sequence[Text]) -> tuple[str, ...]:
    """All labels of the texts, sorted."""
    return tuple(sorted({name for text in texts for name in text.labels}))


def _text(text: str, labels: Sequence[str], group: str | None = None) -> Text:
    return Text(text, tuple(dict.fromkeys(labels)), text if group is None else group)


def _is_elicited(content: str) -> bool:
    """By the first line, which has a reply and no text."""
    first = next((line for line in content.split("\n") if line.strip()), "")
    return '"reply"' in first and '"emotion"' in first and '"text"' not in first


def _table(path: Path, content: str) -> Iterator[Text]:
    names = _names(path)
    # Not splitlines(): a text may hold separators, such as U+2028, at which that would split.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        cells = line.split("\t")

        def wrong(why: str, number: int = number) -> DataError:
            return DataError(f"{path}, line {number}: {why}")

        if len(cells) not in (2, 3):
            raise wrong(
                f"has {len(cells)} columns; expected a text, labels with commas between, and an id or none, with tabs "
                "between"
            )
        if not cells[0].strip():
            raise wrong("the text is empty")
        yield _text(cells[0], [_label(cell, names, wrong) for cell in cells[1].split(",")])


def _names(path: Path) -> list[str]:
    """What the numbers stand for; nothing where no file tells it."""
    file = path.with_name(_LABELS)
    return read_text(file, DataError).split() if file.exists() else []


def _label(cell: str, names: Sequence[str], wrong: Callable[[str], DataError]) -> str:
    name = cell.strip()
    if name.isdecimal():
        if not names:
            raise wrong(f"label {name} is a number, and no {_LABELS} beside the file says what it stands for")
        if int(name) >= len(names):
            raise wrong(f"label {name} is not in {_LABELS}, which has {len(names)}, from 0")
        name = names[int(name)]
    try:
        return _LABEL.validate_python(name)
    except ValidationError:
        raise wrong(
            f"label {name!r}: expected a name of letters, digits, - and _, which begins with a letter"
        ) from None
