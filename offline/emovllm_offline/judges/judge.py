"""Judges of replies: does a text express an emotion? Their interface, their names, and their answers kept by content.

A judge is one file of this folder, or a module that an entry point of another distribution names (group
`emovllm.judges`), with a frozen dataclass of its options and a decorated function that makes it:

    @dataclass(frozen=True, slots=True)
    class Options:
        words: str | None = option(None, "its words", metavar="FILE")

    @judge("counting", "counts words", Options)
    def make(emotions: Sequence[str], options: Options) -> Judge: ...

Every command that judges then knows it, with its options (`--judge-words FILE`). To tell of them, commands import these
files: what is slow to import waits until a judge is made.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

from pydantic import BaseModel, ConfigDict

from emovllm.errors import JudgeError, UnusableJudge
from emovllm_offline.storage.journal import Lines

GROUP = "emovllm.judges"
Opts = TypeVar("Opts")
# What judges a reply by the states that wrote it (`ReadoutJudge`): it is none of those that judge texts.
READOUT = "readout"
NO_STATES = "the judge readout reads the states in which a model writes: only `emovllm evaluate` has them"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one text; where it could not be judged, why."""

    match: bool
    label: str | None  # what a blind judge takes the text for; None from a judge that is told the target
    reason: str
    judged: bool = True

    def of(self, target: str) -> Verdict:
        """What a judge that is not told the target says of the same text beside another one."""
        return replace(self, match=self.label == target) if self.judged else self

    @classmethod
    def unjudged(cls, reason: str) -> Verdict:
        """Of a text that counts neither as a match nor as none."""
        return cls(False, None, reason, judged=False)


EMPTY_REPLY = Verdict(False, None, "empty reply")


class Judge(Protocol):
    """Says of each text whether it expresses its target emotion.

    config: what besides the name decides the answers (a model, a prompt, a word list); part of the cache's keys. One
    that is not told the target may say so by `blind = True`: it is then asked about a text once, whatever the targets.
    """

    name: str
    config: Mapping[str, Any]

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]: ...


@runtime_checkable
class GradualJudge(Judge, Protocol):
    """A judge whose verdicts come one by one, each at a price: they can be kept before the last one is there."""

    def judge_each(self, texts: Sequence[str], targets: Sequence[str], done: Callable[[int, Verdict], None]) -> None:
        """As `judge`; `done` is given each verdict as it comes, with the place of its text."""


def in_order(judge: GradualJudge, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
    """The verdicts of a judge that gives them one by one. Raises: what it raises."""
    verdicts: dict[int, Verdict] = {}
    judge.judge_each(texts, targets, verdicts.__setitem__)
    return [verdicts[place] for place in range(len(texts))]


class _Answer(BaseModel):
    """A line of the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    match: bool
    label: str | None
    reason: str


class CachedJudge:
    """A judge whose answers are kept in a file of JSON lines as they come, by name, config, target and text; those of a
    blind judge without the target.

    Texts that could not be judged are not kept: the next run asks for them again.
    """

    def __init__(self, judge: Judge, path: str | Path) -> None:
        """Raises: StoredError where the file is not a judge's cache."""
        self.name, self.config = judge.name, judge.config
        self._judge, self._blind = judge, getattr(judge, "blind", False)
        self._lines = Lines(Path(path), _Answer)
        self._known = {row.key: Verdict(row.match, row.label, row.reason) for row in self._lines.rows}

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """As the judge itself, which is asked only for what it has not answered before, and once for equal texts: with
        the same target, or of a blind judge with any."""
        keys = [self._key(text, target) for text, target in zip(texts, targets, strict=True)]
        new = sorted({key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}.values())
        answers = self._ask([keys[i] for i in new], [texts[i] for i in new], [targets[i] for i in new]) if new else {}
        found = [self._known[key] if key in self._known else answers[key] for key in keys]
        return [one.of(target) for one, target in zip(found, targets, strict=True)] if self._blind else found

    def _ask(self, keys: Sequence[str], texts: Sequence[str], targets: Sequence[str]) -> dict[str, Verdict]:
        answers: dict[str, Verdict] = {}

        def done(place: int, verdict: Verdict) -> None:
            answers[key := keys[place]] = verdict
            if verdict.judged:
                self._known[key] = verdict
                self._lines.append(_Answer(key=key, match=verdict.match, label=verdict.label, reason=verdict.reason))

        if isinstance(self._judge, GradualJudge):
            self._judge.judge_each(texts, targets, done)
        else:
            for place, verdict in enumerate(self._judge.judge(texts, targets)):
                done(place, verdict)
        return answers

    def _key(self, text: str, target: str) -> str:
        of = [self.name, self.config, *([] if self._blind else [target]), text]
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Kind:
    """A registered judge. options: a frozen dataclass; make: of the emotions and its options."""

    name: str
    about: str
    options: type
    make: Callable[[Sequence[str], Any], Judge]


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Of a judge that has none."""


class OptionField(NamedTuple):
    """An option of one or several judges. flag: on the command line; None where a command has it under its own."""

    name: str
    type: Any  # what it may be where it is given
    default: Any
    help: str
    metavar: str | None
    flag: str | None


_KINDS: dict[str, Kind] = {}


def option(default: Any, help: str, *, metavar: str | None = None, flag: str | None = "") -> Any:
    """A field of a judge's options. flag: `--judge-NAME` of the field's name unless told; None for no flag."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "flag": flag})


def judge(
    name: str,
    about: str,
    options: type[Opts] = NoOptions,  # type: ignore[assignment]
) -> Callable[[Callable[[Sequence[str], Opts], Judge]], Callable[[Sequence[str], Opts], Judge]]:
    """Registers what makes a judge. about: a few words for the help of commands.

    Raises: JudgeError where another judge has the name.
    """

    def register(make: Callable[[Sequence[str], Opts], Judge]) -> Callable[[Sequence[str], Opts], Judge]:
        other = _KINDS.get(name)
        if other is not None and other.make.__module__ != make.__module__:
            raise UnusableJudge(f"two judges are called {name!r}, of {other.make.__module__} and of {make.__module__}")
        _KINDS[name] = Kind(name, about, options, make)
        return make

    return register


def judge_names() -> list[str]:
    """Those of this package, then those of other distributions."""
    return list(dict.fromkeys([*_packaged(), *(point.name for point in _points())]))


def judge_kinds() -> list[Kind]:
    """Every judge; without those of other distributions that cannot be imported, which only `make_judge` tells."""
    kinds = []
    for name in judge_names():
        try:
            kinds.append(_kind(name))
        except JudgeError:
            continue
    return kinds


def option_fields() -> list[OptionField]:
    """The options of all judges, each name once: judges that share a name share its meaning."""
    by_name: dict[str, OptionField] = {}
    for kind in judge_kinds():
        hints = get_type_hints(kind.options)
        for field in dataclasses.fields(kind.options):
            told = field.metadata
            flag = f"--judge-{field.name.replace('_', '-')}" if told["flag"] == "" else told["flag"]
            by_name.setdefault(
                field.name,
                OptionField(field.name, _given(hints[field.name]), field.default, told["help"], told["metavar"], flag),
            )
    return list(by_name.values())


def judge_options(name: str) -> set[str]:
    """The names of the options that a judge has. Raises: as `make_judge` where there is no such judge."""
    return {field.name for field in dataclasses.fields(_kind(name).options)}


def _given(hint: Any) -> Any:
    """The type of an option without None, which stands for the judge's default."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(hint) and len(kinds) == 1 else hint


def make_judge(name: str, emotions: Sequence[str], *, cache: str | Path | None = None, **values: Any) -> Judge:
    """A judge of replies in these emotions, deterministic as far as its model is.

    Args:
        name: one of `judge_names`.
        cache: file in which answers are kept by content, so that none is asked for twice; several judges may share it.
        values: options, of which each judge takes its own; None stands for the default.

    Raises: JudgeError, EmbeddingError, EndpointError; StoredError where the file is no cache; TypeError where no judge
    has such an option.
    """
    kind, own = _kind(name), judge_options(name)
    if unknown := set(values) - own - {field.name for field in option_fields()}:
        raise TypeError(f"no judge has an option {', '.join(sorted(unknown))}")
    options = kind.options(**{key: value for key, value in values.items() if key in own and value is not None})
    made = kind.make(emotions, options)
    return made if cache is None else CachedJudge(made, cache)


def _kind(name: str) -> Kind:
    """Raises: JudgeError where there is no such judge of texts, or its module cannot be imported."""
    if name == READOUT:
        raise UnusableJudge(NO_STATES)
    packaged = _packaged()
    if name in packaged:
        return packaged[name]
    point = next((point for point in _points() if point.name == name), None)
    if point is None:
        raise UnusableJudge(f"there is no judge {name!r}, only {', '.join(judge_names())}")
    try:
        point.load()
    except Exception as error:  # what another distribution does wrong is its own
        raise UnusableJudge(f"the judge {name!r} of {point.value} cannot be imported: {error}") from error
    if name not in _KINDS:
        raise UnusableJudge(f"{point.value} registers no judge {name!r}: its entry point must bear the judge's name")
    return _KINDS[name]


@functools.cache
def _packaged() -> dict[str, Kind]:
    """The judges of this folder. Only files with the decorator are imported: others import clients and models."""
    modules = [path.stem for path in sorted(Path(__file__).parent.glob("*.py")) if "\n@judge(" in path.read_text()]
    for module in modules:
        import_module(f"{__package__}.{module}")
    own = {f"{__package__}.{module}" for module in modules}
    return {name: kind for name, kind in sorted(_KINDS.items()) if kind.make.__module__ in own}


def _points() -> Iterator[EntryPoint]:
    yield from entry_points(group=GROUP)


def require_judged(name: str, verdicts: Sequence[Verdict]) -> None:
    """Raises: JudgeError where a judge could judge none of the texts that there are."""
    if verdicts and not any(verdict.judged for verdict in verdicts):
        raise JudgeError(
            f"the judge {name} could judge none of {len(verdicts)} replies, the first because: {verdicts[0].reason}"
        )
