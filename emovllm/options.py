"""What the options of all commands share: their ranges, lists in one word, and the command as it may be published.

A command's options are a frozen dataclass, a field each, which holds name, type, default, range (annotated-types) and
help. Settings of the module that a command runs are such a dataclass too, and a field of the command's with `FLAT`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval
from cyclopts import Parameter, Token

from emovllm.errors import OptionError

# Of a field that is a dataclass of options: its fields are the command's.
FLAT = Parameter(name="*")
# Where results go, whether they begin anew, and where work stops for a while: no part of how they were made.
_UNPUBLISHED = {"out", "work", "fresh", "stage"}
_URL = re.compile(r"\w+://\S+")
# A path in a longer word, such as NAME=/some/path: all of it but the last part.
_PLACE = re.compile(r"""(?<![\w./~-])[/~](?:[^\s"',=:]*/)?""")


@dataclass(frozen=True)
class Options:
    """The base of all: fields are within their ranges. Raises: OptionError."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in fields(self):
            if trouble := out_of_range(hints[field.name], getattr(self, field.name)):
                raise OptionError(f"{option(type(self), field.name)} {trouble}")

    @property
    def resumes_from(self) -> Path | None:
        """Where the same command, given again, goes on from."""
        return None


def listed(kind: Any, tokens: tuple[Token, ...]) -> tuple[Any, ...]:
    """A tuple from one word, with commas between its items. Raises: ValueError."""
    # Of an option that is given twice, the last counts.
    text = tokens[-1].value
    hint = get_args(kind)[0]
    item = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    parts = [part.strip() for part in text.split(",")]
    kinds = get_args(item) if get_origin(item) in (Union, UnionType) else (item,)
    if number := next((one for one in kinds if one in (int, float)), None):
        # Words that stand for a number.
        words = tuple(word for one in kinds if get_origin(one) is Literal for word in get_args(one))
        try:
            numbers = tuple(part if part in words else number(part) for part in parts)
        except ValueError:
            expected = ", or ".join(["numbers with commas between", *words])
            raise ValueError(f"expected {expected}, got {text!r}") from None
        found = (out_of_range(hint, value) for value in numbers if value not in words)
        if trouble := next(filter(None, found), None):
            raise ValueError(trouble)
        return numbers
    if not (names := tuple(dict.fromkeys(part for part in parts if part))):
        raise ValueError(f"expected names with commas between, got {text!r}")
    if get_origin(item) is Literal and (unknown := [name for name in names if name not in get_args(item)]):
        raise ValueError(f"no {', '.join(unknown)}: choose from {', '.join(get_args(item))}")
    return names


def pairs(kind: Any, tokens: tuple[Token, ...]) -> dict[str, str]:
    """A mapping from one word, lower case on the left. Raises: ValueError."""
    parts = [part.split("=") for part in tokens[-1].value.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in parts):
        raise ValueError(f"expected THEIRS=OURS with commas between, got {tokens[-1].value!r}")
    return {theirs.strip().lower(): ours.strip() for theirs, ours in parts}


def strengths(kind: Any, tokens: tuple[Token, ...]) -> tuple[float, ...]:
    """As `listed`; Raises: ValueError, also for what is no strength."""
    values: tuple[float, ...] = listed(kind, tokens)
    if not all(0 < abs(value) < float("inf") for value in values):
        raise ValueError(f"strengths must be finite and not 0, got {tokens[-1].value!r}")
    return values


def _shown(values: tuple[Any, ...]) -> str:
    return ",".join(map(_text, values))


# Of a tuple that is given in one word.
COMMAS = Parameter(converter=listed, n_tokens=1, show_default=_shown)
STRENGTHS = Parameter(converter=strengths, n_tokens=1, show_default=_shown, metavar="X,...")
# Of a mapping that is given in one word.
PAIRS = Parameter(converter=pairs, n_tokens=1, accepts_keys=False)
# Of one that is given an item at a time.
REPEATED = Parameter(show_default=_shown)
# Of what --help says nothing more about: no default, or one that goes without saying.
QUIET = Parameter(show_default=False)


def published_command(name: str, options: Options) -> str:
    """The command that gives the same: what differs from the defaults, without places on a machine and addresses."""
    return public_command(name, _words(options))


def public_command(name: str, words: Iterable[str]) -> str:
    """A command line without places on a machine and addresses."""
    return shlex.join(["emovllm", *name.split(), *map(_public, words)])


def out_of_range(hint: Any, value: Any) -> str | None:
    """What a value of this type ought to be, and what it is; None where it is within its ranges."""
    for constraint in getattr(hint, "__metadata__", ()):
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and (needed := _breach(constraint, one)):
                return f"must be {needed}, got {_text(one)}"
    return None


def option(kind: type, name: str) -> str:
    """What a field is called on the command line."""
    given = [one for part in _hint(kind, name)[1:] if isinstance(part, Parameter) for one in part.name or ()]
    return given[-1] if given else f"--{name.replace('_', '-')}"


def _words(options: Options) -> Iterator[str]:
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from _words(value)  # type: ignore[arg-type]
        elif field.name not in _UNPUBLISHED and value is not None and value != _default(field):
            yield from _spelt(type(options), field, value)


def _spelt(kind: type, field: Field[Any], value: Any) -> list[str]:
    flag = option(kind, field.name)
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, dict):
        return [flag, ",".join(f"{theirs}={ours}" for theirs, ours in value.items())]
    if not isinstance(value, tuple):
        return ([flag] if field.kw_only else []) + [_text(value)]
    hint, *more = _hint(kind, field.name)
    if any(isinstance(part, Parameter) and part.n_tokens == 1 for part in more):
        return [flag, _shown(value)]
    if ... in get_args(hint):
        return [word for one in value for word in (flag, _text(one))]
    return [flag, *map(_text, value)]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _public(word: str) -> str:
    if word.startswith(("/", "~")):
        return Path(word).name
    return _PLACE.sub("", _URL.sub("URL", word))


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _hint(kind: type, name: str) -> tuple[Any, ...]:
    """The type of a field, and what it is annotated with."""
    hint = _hints(kind)[name]
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _breach(constraint: Any, value: Any) -> str | None:
    """What the value ought to be; None where it is."""
    if isinstance(constraint, Gt) and not value > constraint.gt:  # type: ignore[operator]
        return f"above {constraint.gt}"
    if isinstance(constraint, Ge) and not value >= constraint.ge:  # type: ignore[operator]
        return f"at least {constraint.ge}"
    if isinstance(constraint, Interval) and not constraint.ge <= value <= constraint.le:  # type: ignore[operator]
        return f"between {constraint.ge} and {constraint.le}"
    return None
