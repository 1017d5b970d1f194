"""What an evaluation leaves: numbers as JSON and Markdown, replies as lines, and one page that works offline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from emovllm.errors import ResultsError
from emovllm.files import read_json, write_atomically, write_json
from emovllm.spec import Frozen
from emovllm_offline.evaluation import figures, tables
from emovllm_offline.evaluation.felt import FELT, SHOWN, Felt, Parting, most_parted
from emovllm_offline.evaluation.samples import SAMPLES, Sample, apart, samples
from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.evaluation.summary import ALL, Cell
from emovllm_offline.judges.text import EXPLOSIVE, REPETITIVE
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.page import render
from emovllm_offline.reporting.tables import Table

SUMMARY = "summary.json"
TABLE = "summary.md"
PAGE = "page.html"
SCORED = "scored.jsonl"
_LEGEND = (
    "Every method is decoded alike: greedy, up to the same number of tokens. In brackets: 95% intervals by "
    "bootstrap over groups of messages (SEV's scenarios), since replies of one scenario resemble each other. "
    "Accuracy of `none` is the share of false positives: unsteered replies that the judge takes for an emotion, "
    "averaged over the emotions. Perplexity: of the reply under the unsteered model given the neutral prompt, over "
    "that of the message's own unsteered reply (median); emotional text is unlikely there by nature. Fluency: the "
    "same given the prompt that asks for the emotion, over that of the prompted reply (median); 1 is as fluent as "
    "prompting. Repetition: share of token 3-grams that occurred before in the reply. Longest run: tokens in the "
    "longest stretch that repeats one phrase over and over. Cut: at the token limit. Leak: a letter that is not "
    "Latin. Openings: different first three words of the replies of an emotion, over the replies. Relevance: cosine "
    "of the embeddings of reply and message. Regimes: refusing (it begins by saying that it cannot reply), "
    f"repetitive (else, repetition of {REPETITIVE:g} or more), explosive (else, fluency above {EXPLOSIVE:g}), "
    "surgical (the rest)."
)


_FELT = (
    "Felt: in what a probe read in the states that wrote the reply, the emotion asked for leads among all labels but "
    "neutral. Shown: the judge of its text takes it for the emotion. In brackets: 95% intervals over groups of "
    "messages. Of `none`, the control, no emotion was asked: its replies count for each emotion. What is injected "
    "before the layer that is read is read as well: that an emotion is felt tells first that it arrived."
)
_RISES = (
    "The mean probability of the emotion asked for over the reply's tokens, and at the prompt's last token, before "
    "anything was written. The control: the same emotion's probability in the plain replies to the same messages, and "
    "by how much that of the replies in the emotion is more, message by message."
)


@dataclass(frozen=True, slots=True)
class Results:
    """about: what the evaluation was made from, how fast it was, and how far its judges agree: what summary.json holds
    beside the cells. seed: of the samples. felt: None where nothing was read."""

    about: dict[str, Any]
    scored: Sequence[Scored]
    cells: Sequence[Cell]
    emotions: Sequence[str]
    judges: Sequence[str]
    seed: int
    felt: Felt | None = None

    @property
    def parted(self) -> list[str]:
        """The judges of texts that the read-out is compared with."""
        return [] if self.felt is None else list(dict.fromkeys(of.judge for of in self.felt.partings))


class Summary(Frozen):
    """All of `summary.json`, as it is read again. Files of before it had a format are of its first version."""

    format: Literal["emovllm-evaluation"] = "emovllm-evaluation"
    format_version: Literal[1] = 1
    command: str = ""
    emovllm: str
    model: str
    circuit: str
    settings: dict[str, Any]
    seed: int
    judges: dict[str, dict[str, Any]]
    speed: dict[str, Any]
    refused: tuple[str, ...]
    unjudged: dict[str, dict[str, Any]]
    agreement: tuple[dict[str, Any], ...]
    readout: dict[str, Any] | None = None
    felt: dict[str, Any] | None = None
    cells: tuple[Cell, ...]

    @property
    def about(self) -> dict[str, Any]:
        """How it was made, as the results of probes say it."""
        return {"command": self.command, "seed": self.seed, "versions": {"emovllm": self.emovllm}}

    @classmethod
    def load(cls, folder: str | Path) -> Summary:
        """Raises: ResultsError."""
        return read_json(Path(folder) / SUMMARY, cls, ResultsError)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. image: as `plots.data_uri` gives it."""

    title: str
    text: str = ""
    table: Table | None = None
    image: str | None = None
    samples: Sequence[Sample] = ()


def write(results: Results, out: Path) -> None:
    """Every file of the results, each whole or not at all."""
    lines = "".join(json.dumps(reply.to_json(), ensure_ascii=False) + "\n" for reply in results.scored)
    write_atomically(out / SCORED, lines.encode())
    cells = [{**asdict(cell), "condition": cell.condition._asdict()} for cell in results.cells]
    stamp = {"format": "emovllm-evaluation", "format_version": 1}
    felt = {} if results.felt is None else {"felt": _as_json(results.felt)}
    write_json(out / SUMMARY, {**stamp, **results.about, **felt, "cells": cells})
    write_atomically(out / TABLE, as_markdown(results).encode())
    write_atomically(out / PAGE, as_page(results).encode())


def _as_json(felt: Felt) -> dict[str, Any]:
    return {
        name: [{**asdict(row), "condition": row.condition._asdict()} for row in rows]
        for name, rows in (("partings", felt.partings), ("rises", felt.rises))
    }


def as_markdown(results: Results) -> str:
    about, cells, emotions = results.about, results.cells, results.emotions
    parts = [f"# Evaluation of {about['model']}", tables.overview(cells, results.judges).markdown(), _LEGEND]
    for judge in results.judges:
        parts += [f"Accuracy by emotion, judge {judge}:", tables.by_emotion(cells, judge, emotions).markdown()]
        if valence := tables.by_valence(cells, judge):
            parts += [f"Accuracy by the message's valence, judge {judge}:", valence.markdown()]
        if both := tables.by_emotion_and_valence(cells, judge, emotions):
            parts += [f"Accuracy by emotion and the message's valence, judge {judge}:", both.markdown()]
    parts += [
        "Fluency (median ratio) and repetition, by emotion:",
        tables.fluency_by_emotion(cells, emotions).markdown(),
        *_felt_as_markdown(results),
        *about["refused"],
        *_said_of_unjudged(about["unjudged"], cells),
        *_said_of_speed(about["speed"]),
    ]
    for pair in about["agreement"]:
        kappa = "undefined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        parts.append(
            f"Judges {' and '.join(pair['judges'])} agree on {pair['observed']:.0%} of {pair['count']} replies "
            f"(by {pair['on']}), Cohen's kappa {kappa}."
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _felt_as_markdown(results: Results) -> Iterator[str]:
    if results.felt is None:
        return
    for judge in results.parted:
        yield f"Felt against shown, by the judge {judge}:"
        yield tables.felt_and_shown(results.felt.partings, judge).markdown()
        yield _said_of_parting(results.felt.partings, judge)
    yield from (*([_FELT] if results.parted else []), "What was read:", tables.rises(results.felt.rises).markdown())
    yield _RISES
    yield from _said_of_reading(results.about["readout"])


def as_page(results: Results) -> str:
    about, judge = results.about, results.judges[0]
    said = _said_of_unjudged(about["unjudged"], results.cells)
    provenance = {name: value for name, value in about.items() if name not in ("agreement", "unjudged")}
    sections = [
        Section("Methods", _LEGEND, tables.overview(results.cells, results.judges)),
        *_felt_sections(results),
        *(section for judge in results.judges for section in _sections_of(judge, results)),
        Section(
            "Fluency and repetition by emotion",
            "Median ratio, and mean share of repeated 3-grams.",
            tables.fluency_by_emotion(results.cells, results.emotions),
        ),
        *([Section("Replies that were not judged", " ".join(said))] if said else []),
        Section("Speed", " ".join(_said_of_speed(about["speed"]))),
        Section(
            "Sample replies",
            f"{SAMPLES} messages and an emotion for each, drawn at random (seed {results.seed}), with every method's "
            f"reply. Label: what the judge {judge} takes it for.",
            samples=samples(results.scored, judge, results.seed),
        ),
        Section("Provenance", table=Table(["what", "value"], list(_flat(provenance)))),
    ]
    return render("evaluation.j2", title=f"Evaluation of {about['model']}", sections=sections)


def _sections_of(judge: str, results: Results) -> Iterator[Section]:
    """What one judge says."""
    cells, emotions = results.cells, results.emotions
    yield Section(
        f"Accuracy by emotion, judge {judge}",
        "With 95% intervals (Wilson).",
        tables.by_emotion(cells, judge, emotions),
        plots.data_uri(plots.png(figures.accuracy_by_emotion(cells, judge, emotions))),
    )
    if valence := tables.by_valence(cells, judge):
        yield Section(f"Accuracy by the message's valence, judge {judge}", "Over all emotions.", valence)
    if both := tables.by_emotion_and_valence(cells, judge, emotions):
        told = "With 95% intervals over groups of messages."
        yield Section(f"Accuracy by emotion and the message's valence, judge {judge}", told, both)
    yield Section(
        f"What it costs, judge {judge}",
        "Each point: a method at a strength, over all emotions; lines join the strengths of one way.",
        image=plots.data_uri(plots.png(figures.frontier(cells, judge))),
    )


def _felt_sections(results: Results) -> Iterator[Section]:
    """What was read, beside what judges of texts say."""
    if results.felt is None:
        return
    partings = results.felt.partings
    for judge in results.parted:
        yield Section(
            f"Felt against shown, judge {judge}",
            f"{_FELT} {_said_of_parting(partings, judge)}",
            tables.felt_and_shown(partings, judge),
            plots.data_uri(plots.png(figures.felt_and_shown(partings, judge, results.emotions))),
        )
        if replies := apart(results.scored, judge):
            text = "The least probable of those that are shown alone, the most probable of those that are felt alone."
            yield Section(f"Replies where they part, judge {judge}", text, replies)
    said = " ".join([_RISES, *_said_of_reading(results.about["readout"])])
    yield Section("What was read", said, tables.rises(results.felt.rises))


def _said_of_parting(partings: Sequence[Parting], judge: str) -> str:
    worst = "; ".join(
        f"{of.condition}, {of.emotion}: {tables.percent(of.parted)} percent of {of.replies} replies (felt alone "
        f"{of.shares[FELT].value:.0%}, shown alone {of.shares[SHOWN].value:.0%})"
        for of in most_parted(partings, judge)
    )
    return f"They part most in: {worst}." if worst else "They part in no reply."


def _said_of_reading(readout: Mapping[str, Any]) -> Iterator[str]:
    yield f"Read after layer {readout['layer']}, by the probe {readout['probe'][:12]} ({', '.join(readout['labels'])})."
    if lacking := readout["without a label"]:
        yield f"It has no label for {', '.join(lacking)}: the read-out does not judge them."


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _said_of_unjudged(unjudged: dict[str, dict[str, Any]], cells: Sequence[Cell]) -> list[str]:
    replies = sum(cell.replies for cell in cells if (cell.emotion, cell.valence) == (ALL, ALL))
    return [
        f"The judge {judge} could not judge {missing['replies']} of {replies} replies; its accuracies are over the "
        f"others. The first reason: {missing['first_reason']}"
        for judge, missing in unjudged.items()
    ]


def _said_of_speed(speed: dict[str, Any]) -> list[str]:
    said = []
    if replies := speed.get("replies"):
        said.append(
            f"Replies: {replies['requests_per_s']:.2f}/s, {replies['tokens_per_s']:.0f} tokens/s, "
            f"{replies['utilisation']:.0%} of the allowed requests in flight."
        )
    if scoring := speed.get("perplexity"):
        said.append(f"Perplexities: {scoring['requests_per_s']:.1f}/s, {scoring['tokens_per_s']:.0f} tokens/s.")
    if paper := speed.get("paper_way"):
        said.append(
            f"The paper's way (Hugging Face generate with hooks, one prompt at a time, {paper['requests']} of the same "
            f"prompts, {paper['threads']} threads): {paper['tokens_per_s']:.1f} tokens/s."
        )
    if times := speed.get("times_the_paper_way"):
        said.append(f"That is {times:.1f} times the paper's way.")
    return said
