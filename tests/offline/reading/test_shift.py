from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.errors import DataError
from emovllm.probe import probabilities
from emovllm_offline.data.texts import Text
from emovllm_offline.intervals import by_group
from emovllm_offline.reading.in_chat import At, Chats
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.settings import Measuring
from emovllm_offline.reading.shift import Settings, Shifts, load_users, measure
from emovllm_offline.reading.shift_report import signed, write_report
from emovllm_offline.reading.states import states_of

PROMPTS = {"calm": "always reply in calm .", "pride": "you are very proud .", "weather": "this is a road ."}


def read_below(reader: Reader, texts: list[Text], at: At, layer: int) -> np.ndarray:
    """Centred logits, [none, then prompts; texts; labels], each text read by itself."""
    logits = []
    for system in (None, *PROMPTS.values()):
        chats = Chats(reader.loaded.tokenizer, system)
        states = [states_of(reader.decoder, [chats.read(text.text, at, "last")])[layer, 0] for text in texts]
        logits.append(reader.probe.at(layer).logits(np.stack(states)))
    of = np.stack(logits)
    return of - of.mean(-1, keepdims=True)


@pytest.mark.parametrize(("at", "where"), [(None, "text"), ("reply", "reply")])
def test_changes_are_those_of_each_message_by_itself(
    reader: Reader, labelled: list[Text], tmp_path: Path, at: Any, where: At
) -> None:
    shifts = measure(reader, labelled, PROMPTS, tmp_path, Settings(at=at), shown=False)
    assert (shifts.at, shifts.texts, shifts.groups, shifts.layer) == (where, 30, 15, 3)
    groups = [text.group for text in labelled]
    for layer in (1, 3):
        logits = read_below(reader, labelled, where, layer)
        for place, of in enumerate(shifts.prompts, 1):
            for i, label in enumerate(reader.labels):
                expected = by_group(logits[place, :, i] - logits[0, :, i], groups)
                told = of.at(layer).changes[label]
                assert (told.value, told.low, told.high) == pytest.approx(
                    (expected.value, expected.low, expected.high), abs=1e-4
                )
    calm, pride, weather = shifts.prompts
    one = reader.labels.index("calm")
    more = (logits[1, :, one] - logits[2, :, one]).mean()
    assert calm.at(3).beyond.value == pytest.approx(more, abs=1e-4)  # type: ignore[union-attr]
    read = probabilities(logits)
    assert calm.probability == pytest.approx((read[0, :, one].mean(), read[1, :, one].mean()), abs=1e-4)
    assert calm.leads == pytest.approx(((read[0].argmax(-1) == one).mean(), (read[1].argmax(-1) == one).mean()))
    assert weather.probability is None
    assert weather.at(3).beyond is None
    assert shifts.named == [calm, pride]


def test_a_text_that_is_too_long_below_one_prompt_is_left_out_of_all(
    reader: Reader, labelled: list[Text], tmp_path: Path
) -> None:
    lengths = {
        name: len(Chats(reader.loaded.tokenizer, system).read(labelled[0].text, "text", "last").ids)
        for name, system in PROMPTS.items()
    }
    longer = Text(f"{labelled[0].text} then", ("calm",), "longer")
    settings = Settings(measuring=Measuring(max_tokens=max(lengths.values())))
    shifts = measure(reader, [*labelled, longer], PROMPTS, tmp_path, settings, shown=False)
    assert shifts.texts == 30
    assert shifts.about["data"]["left out"] == {f"more than {max(lengths.values())} tokens": 1}


def test_the_report_has_prompts_and_layers(reader: Reader, labelled: list[Text], tmp_path: Path) -> None:
    shifts = measure(reader, labelled, PROMPTS, tmp_path / "work", Settings(command="emovllm"), shown=False)
    write_report(shifts, tmp_path / "out")
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    calm = shifts.prompts[0]
    assert f"| calm | {signed(calm.at(3).changes['calm'])} | {signed(calm.at(3).beyond)} |" in markdown  # type: ignore[arg-type]
    assert f"| 1 | 0.50 | {signed(calm.at(1).changes['calm'])} |" in markdown
    assert "| weather | this is a road . |" in markdown
    assert "15 groups alone" in markdown
    assert page.count("data:image/png;base64,") == 1
    assert Shifts.load(tmp_path / "out") == shifts
    assert not any(text.text in page for text in labelled)


def test_a_second_run_reads_what_the_first_left(
    reader: Reader, labelled: list[Text], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(reader, labelled, PROMPTS, tmp_path, shown=False)
    monkeypatch.setattr(type(reader.decoder), "forward", None)
    assert measure(reader, labelled, PROMPTS, tmp_path, shown=False) == first


def test_messages_are_labelled_texts_or_a_packaged_set_in_its_scenarios(tmp_path: Path) -> None:
    users = load_users("sev-test")
    assert len({text.group for text in users}) * 3 == len(users)
    assert {text.labels for text in users} == {("positive",), ("neutral",), ("negative",)}
    with pytest.raises(DataError, match="no-such"):
        load_users("no-such")
