"""`emovllm judge-benchmark`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, Options
from emovllm_offline.commands.judging import JUDGE, JudgeOptions
from emovllm_offline.judges.sentences import LABELS

if TYPE_CHECKING:
    from emovllm_offline.judges.judge import Judge


@dataclass(frozen=True)
class JudgeBenchmarkOptions(Options):
    texts: Annotated[
        tuple[Path, ...],
        Parameter(
            help="replies (packaged), JSON lines {text, label, group?, register?}, or a .tsv of GoEmotions with its "
            "labels.txt",
            metavar="FILE",
        ),
    ]
    _: KW_ONLY
    judge: Annotated[tuple[str, ...], COMMAS, JUDGE, Parameter(metavar="NAME[,NAME...]")] = ("local",)
    judging: Annotated[JudgeOptions, FLAT] = field(default_factory=JudgeOptions)
    emotions: Annotated[
        tuple[str, ...], COMMAS, Parameter(help="those to choose from, beside neutral", metavar="NAME,...")
    ] = LABELS[:-1]
    limit: Annotated[
        int | None, Gt(0), Parameter(help="of each file, N texts that are drawn at random, with one seed", metavar="N")
    ] = None
    panel_alone: Annotated[
        bool, QUIET, Parameter(help="measure a panel without its members: they are asked only what it needs to know")
    ] = False
    concurrency: Annotated[int, Gt(0), Parameter(help="requests at a time to an endpoint", metavar="N")] = 8
    out: Annotated[Path, Parameter(help="folder for judge-benchmark.json and the verdicts", metavar="DIR")]

    @property
    def resumes_from(self) -> Path:
        return self.out


def main(options: Annotated[JudgeBenchmarkOptions, FLAT]) -> None:
    """How often are judges right on texts whose emotions are known? Measures each by the register of the texts, with
    intervals, recall by label, and how far two of them agree; a panel is measured beside its members. A judge counts
    in a register where it is right in more than 75%. Interrupted, the same command goes on.
    """
    from emovllm_offline.data.labelled import draw, load_labelled
    from emovllm_offline.judges.benchmark import benchmark

    rows = [row for path in options.texts for row in draw(load_labelled(path), options.limit)]
    options.out.mkdir(parents=True, exist_ok=True)
    judges: dict[str, Judge] = {}
    for name in options.judge:
        judges.update(_judges(name, options))
    result = benchmark(judges, rows, options.emotions)
    result.save(options.out)
    result.print()


def _judges(name: str, options: JudgeBenchmarkOptions) -> dict[str, Judge]:
    """A judge by its name; of a panel, unless it is to be alone, its members before it. Answers are kept in a file for
    each."""
    from emovllm_offline.judges.judge import CachedJudge
    from emovllm_offline.judges.panel import PanelJudge

    judge = options.judging.make(name, options.emotions, None, options.concurrency)
    if not isinstance(judge, PanelJudge):
        return {name: CachedJudge(judge, options.out / f"{name}.jsonl")}
    members = {
        f"{member.name} {number}": CachedJudge(member, options.out / f"{name}-{number}.jsonl")
        for number, member in enumerate(judge.members, 1)
    }
    panel = PanelJudge(list(members.values()))
    return {name: panel} if options.panel_alone else {**members, name: panel}
