"""Elicitation styles: how a model is brought to reply in an emotion. They are data files, not code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from emovllm.errors import StyleError
from emovllm.files import read_json
from emovllm.spec import EmotionName

Text = Annotated[str, Field(min_length=1)]
DEFAULT_STYLES = ("fewshot",)
# The packaged ones that tell a model in its system turn how to reply.
PromptStyle = Literal["fewshot", "paper", "role", "twenty"]
PROMPTS: tuple[PromptStyle, ...] = get_args(PromptStyle)
_STYLES = Path(str(resources.files("emovllm"))) / "data" / "styles"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Turn(_Model):
    """One example exchange before the user's message (few-shot elicitation)."""

    user: Text
    assistant: Text


class Frame(_Model):
    """What stands around a user message.

    Without `reply`, activations are taken at the prompt's last token. With it, they are averaged over tokens of the
    reply, which the model reads as its own (teacher forcing).
    """

    system: Text | None = None
    turns: tuple[Turn, ...] = ()
    reply: Text | None = None


class Span(_Model):
    """Which tokens of a teacher-forced reply count: from `first` (0 is the reply's first) up to, not with, `last`."""

    first: Annotated[int, Field(ge=0)] = 0
    last: Annotated[int, Field(gt=0)] = 32

    @model_validator(mode="after")
    def _not_empty(self) -> Span:
        if self.first >= self.last:
            raise ValueError(f"first {self.first} is not before last {self.last}")
        return self


class Style(_Model):
    """A named set of frames for each emotion.

    An item uses `per_item` frames of every emotion, taken in turn from item to item, so that many variants cost no
    more than one.
    """

    name: Text
    description: Text
    neutral: Frame
    per_item: Annotated[int, Field(gt=0)] = 1
    reply_tokens: Span = Span()
    emotions: dict[EmotionName, Annotated[tuple[Frame, ...], Field(min_length=1)]] = Field(min_length=2)

    @model_validator(mode="after")
    def _neutral_has_no_reply(self) -> Style:
        if self.neutral.reply is not None:
            raise ValueError("the neutral frame has a reply")
        return self

    def frames(self, emotion: str, item: int) -> list[Frame]:
        """The frames that the item of this index uses for one emotion."""
        variants = self.emotions[emotion]
        return [variants[(item * self.per_item + i) % len(variants)] for i in range(min(self.per_item, len(variants)))]

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def packaged_styles() -> list[str]:
    return sorted(path.stem for path in _STYLES.glob("*.json"))


def load_style(source: str | Path) -> Style:
    """A style by the name of a packaged one, or from a JSON file.

    Raises: StyleError, naming the file and what is wrong with it.
    """
    path = Path(source)
    if str(source) in packaged_styles():
        path = _STYLES / f"{source}.json"
    elif path.suffix != ".json":
        raise StyleError(f"no style {str(source)!r}: expected one of {', '.join(packaged_styles())}, or a .json file")
    return read_json(path, Style, StyleError)


def common_emotions(styles: Sequence[Style]) -> tuple[str, ...]:
    """The emotions of all styles, in the order of the first.

    Raises: StyleError where the styles differ in their emotions.
    """
    if not styles:
        raise StyleError("no elicitation style was given")
    names = tuple(styles[0].emotions)
    for style in styles[1:]:
        if set(style.emotions) != set(names):
            odd = sorted(set(style.emotions) ^ set(names))
            raise StyleError(f"styles {styles[0].name} and {style.name} differ in their emotions: {', '.join(odd)}")
    return names
