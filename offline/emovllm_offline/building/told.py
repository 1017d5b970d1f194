"""What a build leaves to be read: one page, and the card of the circuit's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

import emovllm
from emovllm.card import NAME as CARD
from emovllm.card import compose
from emovllm.circuit import Circuit
from emovllm.errors import ResultsError
from emovllm.files import write_atomically
from emovllm_offline.building.found import PLAIN, STEERED, Shown, table
from emovllm_offline.building.state import State
from emovllm_offline.evaluation import figures
from emovllm_offline.evaluation.results import SCORED, Summary
from emovllm_offline.reading.document import Section
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.page import render
from emovllm_offline.reporting.tables import Table
from emovllm_offline.storage.json_lines import read_json_lines

PAGE = "page.html"
_SHOWN = (
    "Shown: the share of replies, to messages that nothing was learnt from or chosen by, one of a scenario, that the "
    "judge takes for the emotion, with Wilson's 95% interval, in percent. Chance: a guess among the emotions and none, "
    "or the plain replies that are taken for it, whichever is more. Fluency: perplexity over that of the reply that a "
    "prompt gets when it asks for the emotion; 1 is as fluent. Repetition: 3-grams that occurred before. Felt: by the "
    "probe; what is injected before the layer that it reads is read too. The weakest first."
)


class _Line(BaseModel):
    """What is shown of a line of SCORED."""

    message: str
    emotion: str
    method: str
    user: str
    reply: str


@dataclass(frozen=True, slots=True)
class Story:
    """All that is told. advice: by emotion, what to do where it does not show. scored: folder of the evaluation.
    probe: whether one is written beside the circuit."""

    circuit: Circuit
    state: State
    summary: Summary
    found: Sequence[Shown]
    advice: Mapping[str, Sequence[str]]
    command: str
    scored: Path
    probe: bool

    @property
    def failed(self) -> list[Shown]:
        return [one for one in self.found if not one.shows]

    @property
    def judge(self) -> str:
        return self.found[0].judge

    @property
    def chooser(self) -> str | None:
        """The judge that chose the strengths, where it is another."""
        return self.found[0].chooser if self.found[0].apart else None

    def said(self) -> str:
        """How many show, by whom; and who chose, where that was another."""
        names = ", ".join(one.emotion for one in self.found if one.shows) or "none"
        count = max((one.shown.count for one in self.found if one.shown), default=0)
        return (
            f"{len(self.found) - len(self.failed)} of {len(self.found)} emotions show beyond chance, by the judge "
            f"{self.judge} on {count} replies each: {names}."
            + (f" The judge {self.chooser} chose the strengths, on other messages." if self.chooser else "")
        )

    def legend(self) -> str:
        return _SHOWN + (f" Beside it: by the judge {self.chooser}, which chose the strengths." if self.chooser else "")


def write(story: Story, out: Path) -> None:
    """PAGE and CARD. Raises: OSError."""
    write_atomically(out / PAGE, as_page(story).encode())
    write_atomically(out / CARD, as_card(story).encode())


def as_page(story: Story) -> str:
    return render(
        "probe.j2",
        title=f"Emotion circuit of {story.circuit.spec.model.id}",
        summary=story.said() + ("" if story.chooser else " The judge also chose the strengths, on other messages."),
        notes=[*(one.told() for one in story.failed), *(f"For the time: {told}." for told in story.state.left_out)],
        sections=_sections(story),
    )


def _sections(story: Story) -> list[Section]:
    cells, emotions = story.summary.cells, story.circuit.names
    drawn = figures.accuracy_by_emotion(cells, story.judge, emotions)
    image = plots.data_uri(plots.png(drawn))
    of_emotions = table(story.found, story.circuit)
    sections = [Section("How well each emotion shows, and what it costs", story.legend(), of_emotions, image)]
    if story.advice:
        text = "What takes least comes first."
        rows = [[emotion, told] for emotion, all_told in story.advice.items() for told in all_told]
        sections.append(Section("What to do where one fails", text, Table(["emotion", "what to try"], rows)))
    stages = [
        [name, f"{of.planned:.1f}", f"{of.minutes:.1f}" if of.done else "-", "; ".join(of.notes)]
        for name, of in story.state.stages.items()
    ]
    commands = [[name, told] for name, of in story.state.stages.items() for told in of.commands]
    return [
        *sections,
        Section("Replies", "One message for each emotion, not chosen.", _examples(story)),
        Section(
            "What was done",
            f"Minutes as planned and as taken, by {story.command}.",
            Table(["stage", "planned", "taken", "what it found"], stages),
        ),
        Section(
            "Each stage alone",
            "These repeat it; places are left out, and lie in the work folder beside the circuit.",
            Table(["stage", "command"], commands),
        ),
    ]


def _examples(story: Story) -> Table:
    """The replies to a message each, plain and in the emotion: the first message for the first emotion, and so on."""
    lines = [line for _, line in read_json_lines(story.scored / SCORED, _Line, ResultsError)]
    messages = list(dict.fromkeys(line.message for line in lines))
    plain = {line.message: line for line in lines if line.method == PLAIN.method}
    steered = {(line.message, line.emotion): line for line in lines if line.method == STEERED.method}
    rows = []
    for at, emotion in enumerate(story.circuit.names):
        message = messages[at % len(messages)]
        rows.append([emotion, plain[message].user, plain[message].reply, steered[message, emotion].reply])
    return Table(["emotion", "message", "plain", "in the emotion"], rows)


def as_card(story: Story) -> str:
    """The circuit's card, with what was measured."""
    chose = (
        f"the judge {story.chooser}, which chose the strengths,"
        if story.chooser
        else "the judge, which chose the strengths too,"
    )
    limits = [
        f"No person read or judged these replies; {chose} is no stranger to them.",
        "Not measured: refusals, harm, facts, other languages, long replies, quantised weights; nor whether other "
        "neurons and heads do as well after the same refinement.",
        "The licence is that of the model, and of the replies that it learnt from: add `license` above.",
    ]
    sections = [
        "## How it was made",
        f"By `{story.command}`, emovllm {emovllm.__version__}, digest {story.circuit.digest()[:16]}:",
        "\n".join(_made(story.state)),
        "## How well it steers",
        table(story.found, story.circuit).markdown().strip(),
        story.legend(),
        *(["\n".join(f"- {one.told()}." for one in story.failed)] if story.failed else []),
        f"Measured by `{story.summary.command}`; {PAGE} has more.",
    ]
    return compose(story.circuit, "DIR", sections, limits, said=story.said(), probe=story.probe)


def _made(state: State) -> list[str]:
    return [f"- {name}: {'; '.join(of.notes) or 'done'}" for name, of in state.stages.items()]
