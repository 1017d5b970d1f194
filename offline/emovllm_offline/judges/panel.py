"""Several judges as one: what more than half of them say."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.errors import UnusableJudge
from emovllm.files import read_text
from emovllm_offline.judges.judge import EMPTY_REPLY, Judge, Verdict, in_order, judge, make_judge, option

# Texts that go through all members before the verdicts on them are handed over, to be kept.
BATCH = 16
# Fewer say no more than one of them does.
LEAST = 2


@dataclass(frozen=True, slots=True)
class Options:
    """panel: a TOML file, a table [[judge]] for each member with its `name` and options."""

    panel: str | None = option(None, "the members of a panel: a TOML file", metavar="FILE")


@judge("panel", "what most of several judges say", Options)
def make(emotions: Sequence[str], options: Options) -> PanelJudge:
    """Raises: JudgeError; what the members' own makers raise."""
    if options.panel is None:
        raise UnusableJudge("--judge panel needs --judge-panel: a TOML file with a table [[judge]] for each member")
    return PanelJudge(load_members(options.panel, emotions))


def load_members(path: str | Path, emotions: Sequence[str]) -> list[Judge]:
    """The judges that a panel's file names. Raises: JudgeError; what the members' own makers raise."""
    try:
        tables = tomllib.loads(read_text(Path(path), UnusableJudge)).get("judge")
    except tomllib.TOMLDecodeError as error:
        raise UnusableJudge(f"{path}: no TOML: {error}") from None
    if not isinstance(tables, list) or len(tables) < LEAST:
        raise UnusableJudge(f"{path}: a panel needs at least {LEAST} members, a table [[judge]] each")
    return [_member(path, table, emotions) for table in tables]


def _member(path: str | Path, table: Any, emotions: Sequence[str]) -> Judge:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise UnusableJudge(f"{path}: each table [[judge]] needs a name, a judge's")
    if table["name"] == "panel":
        raise UnusableJudge(f"{path}: a panel is no member of a panel")
    values = {key.replace("-", "_"): value for key, value in table.items() if key != "name"}
    try:
        return make_judge(table["name"], emotions, **values)
    except TypeError as error:
        raise UnusableJudge(f"{path}: {table['name']}: {error}") from None


class PanelJudge:
    """Labels a text as more than half of its members do that could judge it; without such a majority it has no label
    and matches nothing. They are asked in their order, about a text only until more than half agree: nothing that the
    others say would change that. The reason names the label of each that was asked."""

    name = "panel"
    blind = True

    def __init__(self, members: Sequence[Judge]) -> None:
        self.members = tuple(members)
        self.config: Mapping[str, Any] = {
            "members": [{"name": member.name, "config": dict(member.config)} for member in members]
        }

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        """Raises: JudgeError where a member is told the target; what the members raise."""
        return in_order(self, texts, targets)

    def judge_each(self, texts: Sequence[str], targets: Sequence[str], done: Callable[[int, Verdict], None]) -> None:
        """As `judge`; `done` is given the verdicts as they come, with the places of their texts."""
        for start in range(0, len(texts), BATCH):
            places = range(start, min(start + BATCH, len(texts)))
            votes = self._votes([texts[i] for i in places], [targets[i] for i in places])
            for place, of_text in zip(places, votes, strict=True):
                done(place, self._verdict(of_text, texts[place], targets[place]))

    def _votes(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[Verdict]]:
        """Of each text the verdicts of the members that were asked about it: the first ones. Raises: as `judge`."""
        votes: list[list[Verdict]] = [[] for _ in texts]
        for member in self.members:
            places = [place for place, of_text in enumerate(votes) if not self._settled(of_text)]
            if not places:
                break
            verdicts = member.judge([texts[i] for i in places], [targets[i] for i in places])
            for place, verdict in zip(places, verdicts, strict=True):
                if verdict.judged and verdict.label is None and texts[place].strip():
                    raise UnusableJudge(
                        f"the judge {member.name} chooses no label: a panel's members must be blind to the target"
                    )
                votes[place].append(verdict)
        return votes

    def _settled(self, votes: Sequence[Verdict]) -> bool:
        """Whether more than half of all members agree."""
        labels = Counter(vote.label for vote in votes if vote.judged)
        return any(2 * count > len(self.members) for count in labels.values())

    def _verdict(self, votes: Sequence[Verdict], text: str, target: str) -> Verdict:
        if not text.strip():
            return EMPTY_REPLY
        # Those that were not asked are the last.
        judged = [(member.name, vote) for member, vote in zip(self.members, votes, strict=False) if vote.judged]
        if len(judged) < LEAST:
            missing = next(vote.reason for vote in votes if not vote.judged)
            return Verdict.unjudged(f"{len(judged)} of {len(votes)} members could judge it: {missing}")
        said = ", ".join(f"{name} {vote.label}" for name, vote in judged)
        label, count = Counter(vote.label for _, vote in judged).most_common(1)[0]
        if 2 * count <= len(judged):
            return Verdict(False, None, f"no majority: {said}")
        spared = "".join(f"; {member.name} not asked" for member in self.members[len(votes) :])
        return Verdict(label == target, label, f"{count} of {len(judged)}: {said}{spared}")
