"""Scenario-events of a domain of one's own, written by a model behind an endpoint and held to what SEV is held to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from emovllm.errors import DataError, RefusedByEndpoint
from emovllm.files import first_fault, read_text, write_atomically
from emovllm.progress import Bar
from emovllm_offline.data.sev import (
    LEAST_OVERLAP,
    VALENCES,
    WORDS_PER_SENTENCE,
    CarefulReader,
    Record,
    load_sev,
    parse_sev,
)
from emovllm_offline.endpoint.answer import json_objects
from emovllm_offline.endpoint.client import Chat, Endpoint, Messages

# Of a theme's scenarios so far, how many the model is shown, not to write them again.
_SHOWN = 30
_TOKENS = 400
_SENTENCES = ("scenario", *VALENCES)
_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "scenario",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in _SENTENCES},
            "required": [*_SENTENCES],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Domain:
    """What to write. themes: a few words each; scenarios: of each theme; about: who writes, about what, in the model's
    prompt; attempts: at a scenario."""

    themes: Sequence[str]
    scenarios: int = 20
    about: str = ""
    attempts: int = 5
    temperature: float = 1.0

    def ids(self) -> dict[str, list[str]]:
        """The scenarios' ids by theme. Raises: DataError where two themes would have the same."""
        stems = {theme: re.sub(r"[^a-z0-9]+", "-", theme.lower()).strip("-") for theme in self.themes}
        if len({*stems.values(), ""}) <= len(self.themes):
            raise DataError(f"themes need letters or digits that tell them apart: {', '.join(self.themes)}")
        return {theme: [f"{stem}_{number:02}" for number in range(self.scenarios)] for theme, stem in stems.items()}


@dataclass(frozen=True, slots=True)
class Made:
    """sound: how many of the scenarios that were asked for are in the file. failed: the themes that lack some, each
    with what was wrong with the last attempt."""

    sound: int
    failed: Mapping[str, Sequence[str]]


def make(endpoint: Endpoint, domain: Domain, out: Path, *, progress: bool = True) -> Made:
    """`emovllm data make`: writes the scenarios that `out` lacks, each as soon as it is sound; at the end the themes
    take turns in the file, as in SEV, so that any first part of it is balanced.

    Raises: DataError where `out` holds something else; EndpointError, FilteredByEndpoint, OSError.
    """
    ids = domain.ids()
    found = {record.skeleton_id: record for record in parse_sev(out, text)} if (text := _text(out)).strip() else {}
    wanted = {id for of_theme in ids.values() for id in of_theme}
    out.parent.mkdir(parents=True, exist_ok=True)
    failed: dict[str, list[str]] = {}
    reader = CarefulReader(found.values())
    with (
        Bar("scenarios", len(wanted), done=len(wanted & found.keys()), unit="scenarios", shown=progress) as bar,
        out.open("a", encoding="utf-8") as file,
    ):
        if text and not text.endswith("\n"):
            file.write("\n")

        async def of_theme(chat: Chat, theme: str) -> None:
            for id in ids[theme]:
                if id in found:
                    continue
                before = [record for record in found.values() if record.theme == theme]
                record, complaints = await _attempt(chat, domain, _request(domain, theme, before), id, theme, reader)
                if record is None:
                    failed[theme] = complaints
                    return
                found[id] = record
                reader.remember(record)
                file.write(record.model_dump_json() + "\n")
                file.flush()
                bar.advance()

        endpoint.map(of_theme, list(ids))
    order = [id for turn in zip(*ids.values(), strict=True) for id in turn]
    rows = [found[id] for id in [*(id for id in order if id in found), *(id for id in found if id not in wanted)]]
    write_atomically(out, "".join(record.model_dump_json() + "\n" for record in rows).encode())
    return Made(len(wanted & found.keys()), failed)


def _text(out: Path) -> str:
    return read_text(out, DataError) if out.exists() else ""


async def _attempt(
    chat: Chat, domain: Domain, request: Messages, id: str, theme: str, reader: CarefulReader
) -> tuple[Record | None, list[str]]:
    """A sound scenario, or None and what is wrong with the last attempt."""
    conversation = request
    complaints: list[str] = []
    for _ in range(domain.attempts):
        try:
            answer = await chat(
                conversation, max_tokens=_TOKENS, temperature=domain.temperature, response_format=_FORMAT
            )
        except RefusedByEndpoint as error:
            return None, [str(error)]
        record, complaints = _read(answer.text, id, theme)
        if record is not None:
            complaints = [complaint.lstrip(".: ") for complaint in reader.complaints(record)]
            if not complaints:
                return record, []
        conversation = [
            *request,
            {"role": "assistant", "content": answer.text or "{}"},
            {"role": "user", "content": "Not yet: " + "; ".join(complaints) + ". Write it again, as JSON."},
        ]
    return None, complaints


def _read(text: str, id: str, theme: str) -> tuple[Record | None, list[str]]:
    """What a model answered as a record, whatever it wrote around it; or what is wrong with it."""
    objects = json_objects(text)
    if len(objects) != 1:
        return None, [f"the answer is not a JSON object with {', '.join(_SENTENCES)}"]
    said = {name: " ".join(value.split()) if isinstance(value, str) else value for name, value in objects[0].items()}
    event = {valence: said.get(valence) for valence in VALENCES}
    try:
        return Record.model_validate(
            {"skeleton_id": id, "theme": theme, "scenario": said.get("scenario"), "event": event}
        ), []
    except ValidationError as error:
        return None, [first_fault(error)]


@cache
def _examples() -> str:
    """Two of SEV's scenarios, as a model is to answer."""
    return "\n".join(
        json.dumps({"scenario": record.scenario, **record.event.model_dump()}) for record in load_sev()[:2]
    )


def _request(domain: Domain, theme: str, before: Sequence[Record]) -> Messages:
    least, most = WORDS_PER_SENTENCE
    rules = (
        "You write test messages that people send to an assistant, as JSON: a scenario and three events.\n"
        f"- scenario: one sentence in the first person, {least} to {most} words, that says what I am doing or waiting "
        "for; nothing is decided yet.\n"
        f"- positive, neutral, negative: what happens then, one sentence of {least} to {most} words each. The three "
        "are the same sentence but for the outcome, which a few words decide: they share most of their words (at "
        f"least {LEAST_OVERLAP:.0%}).\n"
        "- Facts alone: no word that names, shows or judges a feeling, such as happy, worried, sadly or terrible.\n"
        "- Plain ASCII, a full stop at the end, no names of real people or firms."
    )
    if domain.about:
        rules += f"\nWho writes: {domain.about}"
    told = f"Theme: {theme}. Two examples, of other themes:\n{_examples()}"
    if before:
        told += "\nThese are written already; write about something else:\n" + "\n".join(
            f"- {record.scenario}" for record in before[-_SHOWN:]
        )
    return [{"role": "system", "content": rules}, {"role": "user", "content": told + "\nWrite the next one, as JSON."}]
