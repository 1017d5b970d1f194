"""A judge that counts words. It needs no model and no network, and it is for smoke use.

It leans on words: a reply that shows its anger without an angry word is missed, one that only talks about anger, or
repeats it from its prompt, is accepted, and a style whose examples are full of such words is flattered. Use a model
as the judge for results that are to be believed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from emovllm.errors import UnusableJudge
from emovllm.files import read_json
from emovllm.readout import NEUTRAL
from emovllm.spec import EmotionName
from emovllm_offline.judges.judge import Verdict, judge, option
from emovllm_offline.storage.places import JUDGES

_PACKAGED = JUDGES / "lexicon.json"
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A negation reaches this many words ahead, within its clause.
REACH = 3
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[!?]+|[^\w\s-]")


def tokens(text: str) -> list[str]:
    """Lower-case words, runs of ! and ?, and other signs one by one; digits and hyphens are none."""
    return _TOKEN.findall(text.lower().replace("\u2019", "'"))


def _has_token(entry: str) -> str:
    if not tokens(entry):
        raise ValueError(f"the entry {entry!r} has no word")
    return entry


Entry = Annotated[str, AfterValidator(_has_token)]


class Lexicon(BaseModel):
    """A word list. An entry is a word, a stem (`angr*`) or a phrase of these, such as `fed up`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    threshold: Weight
    negations: tuple[Entry, ...] = ()
    affirmed: tuple[Entry, ...] = ()  # phrases whose negation negates nothing: `not only`, `cannot stop`
    marks: dict[Entry, dict[EmotionName, Weight]] = {}  # `!!`, `??`, `?!`: what repeated marks speak for
    emotions: dict[EmotionName, dict[Weight, tuple[Entry, ...]]] = Field(min_length=1)


def load_lexicon(path: str | Path | None = None) -> Lexicon:
    """A lexicon from a JSON file, or the packaged one.

    Raises: UnusableJudge, naming the file and what is wrong with it.
    """
    return read_json(_PACKAGED if path is None else Path(path), Lexicon, UnusableJudge)


@dataclass(frozen=True, slots=True)
class Options:
    """lexicon: a file."""

    lexicon: str | None = option(
        None, "word list of the lexicon judge (default: the packaged one)", metavar="FILE", flag="--lexicon"
    )


@judge("lexicon", "a word list", Options)
def make(emotions: Sequence[str], options: Options) -> LexiconJudge:
    """Raises: UnusableJudge."""
    return LexiconJudge(emotions, load_lexicon(options.lexicon))


class LexiconJudge:
    """Labels a text with the emotion whose words weigh most, or neutral where none reaches the lexicon's threshold."""

    name = "lexicon"
    blind = True

    def __init__(self, emotions: Sequence[str], lexicon: Lexicon | None = None) -> None:
        """emotions: the labels to choose from, besides neutral.

        Raises: UnusableJudge where the lexicon lacks an emotion.
        """
        lexicon = lexicon or load_lexicon()
        if missing := [emotion for emotion in emotions if emotion not in lexicon.emotions]:
            raise UnusableJudge(
                f"the lexicon has no words for {', '.join(missing)}: give one that has (--lexicon), or a judge of any "
                "emotions, such as llm or openai-blind"
            )
        self.config: Mapping[str, Any] = {
            "emotions": sorted(emotions),
            "lexicon": hashlib.sha256(json.dumps(lexicon.model_dump(), sort_keys=True).encode()).hexdigest(),
        }
        self._lexicon = lexicon
        self._emotions = {emotion: Entries(lexicon.emotions[emotion]) for emotion in emotions}
        self._affirmed = Entries({1.0: lexicon.affirmed})

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        return [self._verdict(text, target) for text, target in zip(texts, targets, strict=True)]

    def _verdict(self, text: str, target: str) -> Verdict:
        scores = self.scores(text)
        label, best = max(scores.items(), key=lambda item: item[1])
        tied = sum(score == best for score in scores.values()) > 1
        if tied or best < self._lexicon.threshold:
            label = NEUTRAL
        found = ", ".join(f"{emotion} {score:g}" for emotion, score in scores.items() if score) or "no emotion words"
        return Verdict(label == target, label, found)

    def scores(self, text: str) -> dict[str, float]:
        """The weight of each emotion's entries and marks in a text; a negated word has none."""
        words = tokens(text)
        found = {emotion: list(entries.find(words)) for emotion, entries in self._emotions.items()}
        # "I can't believe how happy I am": the negation belongs to its phrase, not to what follows.
        spent = {
            i
            for matches in (*found.values(), self._affirmed.find(words))
            for at, pattern, _ in matches
            for i in range(at, at + len(pattern))
        }
        # An entry counts once: a small model that repeats one sentence to the end has said it once.
        counted = {
            emotion: {pattern: weight for at, pattern, weight in matches if not self._negated(words, at, spent)}
            for emotion, matches in found.items()
        }
        scores = {emotion: sum(weights.values()) for emotion, weights in counted.items()}
        for mark, weights in self._lexicon.marks.items():
            if any(set(mark) == set(word) and len(word) >= len(mark) for word in words):
                for emotion in weights.keys() & scores.keys():
                    scores[emotion] += weights[emotion]
        return scores

    def _negated(self, words: Sequence[str], at: int, spent: set[int]) -> bool:
        for i in range(at - 1, max(at - 1 - REACH, -1), -1):
            if not words[i][0].isalpha():
                return False
            if i not in spent and (words[i] in self._lexicon.negations or words[i].endswith("n't")):
                return True
        return False


class Entries:
    """The entries of one emotion, by their first letter."""

    def __init__(self, by_weight: Mapping[float, Sequence[str]]) -> None:
        self._by_letter: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for weight, entries in by_weight.items():
            for entry in entries:
                pattern = tuple(" ".join(tokens(entry)).replace(" *", "*").split())
                self._by_letter.setdefault(pattern[0][0], []).append((pattern, weight))

    def find(self, words: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...], float]]:
        """(position, entry, weight) of what is found; the longest entry at a place wins, then the heaviest."""
        at = 0
        while at < len(words):
            candidates = self._by_letter.get(words[at][0], [])
            fitting = [(len(pattern), weight, pattern) for pattern, weight in candidates if _fits(pattern, words, at)]
            if fitting:
                size, weight, pattern = max(fitting)
                yield at, pattern, weight
                at += size
            else:
                at += 1


def _fits(pattern: Sequence[str], words: Sequence[str], at: int) -> bool:
    return at + len(pattern) <= len(words) and all(
        words[at + i].startswith(part[:-1]) if part.endswith("*") else words[at + i] == part
        for i, part in enumerate(pattern)
    )
