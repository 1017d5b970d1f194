"""The options of commands that judge replies: those that the judges themselves have, whoever brings them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

from cyclopts import Parameter

from emovllm.options import PAIRS, Options
from emovllm_offline.judges.judge import (
    NO_STATES,
    READOUT,
    Judge,
    OptionField,
    judge_kinds,
    judge_names,
    judge_options,
    make_judge,
    option_fields,
)


def _of_texts(kind: Any, names: str | tuple[str, ...]) -> None:
    """Raises: ValueError for what no judge of texts is called."""
    if READOUT in ((names,) if isinstance(names, str) else names):
        raise ValueError(NO_STATES)
    _known(names, judge_names())


def _of_replies(kind: Any, names: tuple[str, ...]) -> None:
    """Raises: ValueError for what no judge is called."""
    _known(names, [*judge_names(), READOUT])


def _known(names: str | tuple[str, ...], known: Sequence[str]) -> None:
    if unknown := [name for name in ((names,) if isinstance(names, str) else names) if name not in known]:
        raise ValueError(f"no judge {', '.join(unknown)}: choose from {', '.join(known)}")


_TEXTS = ", ".join(f"{kind.name} ({kind.about})" for kind in judge_kinds())
JUDGE = Parameter(help=_TEXTS, validator=_of_texts)
# Of replies whose states can be read too.
JUDGE_OR_READOUT = Parameter(
    help=f"{_TEXTS}, {READOUT} (what a probe reads in the states that wrote the reply)", validator=_of_replies
)


@dataclass(frozen=True, kw_only=True)
class Judging(Options):
    """What belongs to --judge: each judge takes its own options, and its defaults where they are not given."""

    def make(self, name: str, emotions: Sequence[str], cache: Path | None, concurrency: int) -> Judge:
        """The judge of that name. Raises: as `make_judge`."""
        return make_judge(name, emotions, cache=cache, **{**self._values(), "concurrency": concurrency})

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        """What was given of the options that these judges have, by their names. Raises: JudgeError for a name that
        no judge has."""
        own = {option for name in names for option in judge_options(name)}
        return {name: value for name, value in self._values().items() if name in own and value is not None}

    def _values(self) -> dict[str, Any]:
        return {field.metadata["option"]: getattr(self, field.name) for field in fields(self)}


def _field(option: OptionField) -> tuple[str, Any, Any]:
    """An option as a field of a command's: its name there, its type and what it stands for."""
    assert option.flag is not None
    parameter = Parameter(name=option.flag, help=option.help, metavar=option.metavar, show_default=False)
    more = (PAIRS, parameter) if get_origin(option.type) is Mapping else (parameter,)
    name = option.flag.removeprefix("--").replace("-", "_")
    return name, Annotated[option.type | None, *more], field(default=None, metadata={"option": option.name})


if TYPE_CHECKING:
    JudgeOptions = Judging
else:
    JudgeOptions = make_dataclass(
        "JudgeOptions",
        [_field(option) for option in option_fields() if option.flag is not None],
        bases=(Judging,),
        frozen=True,
        kw_only=True,
        namespace={"__module__": __name__},
    )
