"""What a build is made from, read and checked before anything long begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emovllm.errors import BuildError, DataError
from emovllm.files import read_text
from emovllm_offline.building.obeyed import asks
from emovllm_offline.building.parts import Parts, load_parts, write_lines
from emovllm_offline.building.settings import BuildSettings
from emovllm_offline.building.sizes import effort_of
from emovllm_offline.building.state import MEASURING
from emovllm_offline.commands.shared import arguments
from emovllm_offline.data import examples, sev
from emovllm_offline.data.examples import Example
from emovllm_offline.data.styles import Style, load_style
from emovllm_offline.judges.lexicon import load_lexicon
from emovllm_offline.judges.sentences import LABELS

# Of the six emotions: those that are tried, in this order, and what a discovery takes that nothing was elicited for.
TRIED = ("paper", "fewshot", "role")
FORCED = "fewshot"
# Fewer messages are no refinement.
LEAST_MESSAGES = 8


@dataclass(frozen=True, slots=True)
class Inputs:
    """styles: those that ask, by their names, in the order in which they are tried; sources: what a command calls each.
    forced: the style of a discovery that nothing was elicited for. written: replies to learn from, none where there
    are none in these emotions."""

    model: str
    settings: BuildSettings
    parts: Parts
    styles: Mapping[str, Style]
    sources: Mapping[str, str]
    forced: Style
    written: Sequence[Example]

    @classmethod
    def of(cls, model: str, settings: BuildSettings) -> Inputs:
        """Raises: StyleError, DataError, ExamplesError, BuildError; OptionError for --engine-args."""
        arguments(settings.engine_args)
        names = TRIED if settings.emotions is None else (settings.emotions,)
        loaded = {name: load_style(name) for name in names}
        forced = loaded[settings.emotions or FORCED]
        parts = load_parts(settings.data)
        made = cls(
            model,
            settings,
            parts,
            {style.name: style for style in loaded.values() if asks(style)},
            {style.name: name for name, style in loaded.items()},
            forced,
            _written(settings, tuple(forced.emotions), parts),
        )
        if settings.probe_data is not None:
            read_text(settings.probe_data, DataError)
        return made

    @property
    def emotions(self) -> tuple[str, ...]:
        return tuple(self.forced.emotions)

    @property
    def english(self) -> bool:
        """Whether the replies are the packaged ones, which are English and of the six emotions."""
        return bool(self.written) and self.settings.replies is None and set(self.emotions) <= set(LABELS)

    @property
    def judged_by_words(self) -> bool:
        """Whether the word list has every emotion, by which the model's own replies are sifted."""
        return set(self.emotions) <= set(load_lexicon().emotions)

    def learn(self, place: Path) -> str:
        """The scenarios to learn from, as a command takes them; written there where they are the user's."""
        if not self.parts.own:
            return "sev-train"
        path = place / "data" / "learn.jsonl"
        write_lines(path, [record.model_dump(exclude_defaults=True) for record in self.parts.learn])
        return str(path)

    def describe(self, model_id: str) -> dict[str, Any]:
        """What decides the results, but for the time: it holds no places of files."""
        settings = self.settings
        return {
            "model": model_id,
            "effort": effort_of(settings.effort, settings.minutes),
            "emotions": [style.digest() for style in (*self.styles.values(), self.forced)],
            "data": [sev.digest(part) for part in (self.parts.learn, self.parts.choose, self.parts.test)],
            "replies": examples.digest(self.written),
            "probe data": None if settings.probe_data is None else _sha256(settings.probe_data),
            "judge": self._judges(settings.judge[:1]),
            MEASURING: self._judges(settings.judge[1:]),
            "engine": settings.engine_args,
            "loading": asdict(settings.loading),
        }

    def _judges(self, names: Sequence[str]) -> list[dict[str, Any]]:
        judging = self.settings.judging
        return [{"name": name, **{key: str(of) for key, of in judging.given([name]).items()}} for name in names]


def _written(settings: BuildSettings, emotions: Sequence[str], parts: Parts) -> list[Example]:
    """Raises: ExamplesError, BuildError where the user's own lack an emotion."""
    if settings.replies is not None:
        found = examples.load_examples(settings.replies)
        examples.require_emotions(found, emotions)
        if len(found) < LEAST_MESSAGES:
            raise BuildError(f"--replies {settings.replies}: {len(found)} messages, {LEAST_MESSAGES} are the least")
        return found
    found = examples.load_examples()
    has_all = all(name in example.replies for example in found for name in emotions)
    # In another language, or of another domain, they would teach that too.
    return found if has_all and not parts.own else []


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
