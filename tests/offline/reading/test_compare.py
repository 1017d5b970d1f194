from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from emovllm.errors import DataError
from emovllm_offline.data.texts import Text
from emovllm_offline.reading.chosen import Chosen, draw_texts, readable
from emovllm_offline.reading.compare import PROBE, ZERO_SHOT, Compared, Settings, compare
from emovllm_offline.reading.compare_report import write_report
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.settings import Measuring
from emovllm_offline.reading.states import states_of
from emovllm_offline.reading.zero_shot import ask, question_table


@pytest.fixture
def chosen(reader: Reader, labelled: list[Text]) -> Chosen:
    others = [Text("yes", ("calm", "pride"), "x"), Text("no", ("joy",), "x")]
    drawn, left_out = draw_texts([*labelled, *others], reader.labels, None, 0)
    reads = reads_of(reader.loaded.tokenizer, [text.text for text in drawn], "last", chat=False)
    return readable(drawn, reads, 128, left_out)


def test_both_are_measured_on_the_same_texts(reader: Reader, chosen: Chosen, tmp_path: Path) -> None:
    compared = compare(reader, chosen, tmp_path / "work", shown=False)
    truth = chosen.label(reader.labels)
    read = [int(reader.probe.at().logits(states_of(reader.decoder, [one])[3, 0]).argmax()) for one in chosen.reads]
    answers = ask(reader.loaded, reader.labels, [text.text for text in chosen.texts], tmp_path / "again", {}, False)
    told = answers.told()
    for name, of_texts in ((PROBE, read), (ZERO_SHOT, told)):
        teller = compared.of(name)
        assert teller.f1.value == pytest.approx(f1_score(truth, of_texts, average="macro"))
        assert teller.accuracy.value == pytest.approx(accuracy_score(truth, of_texts))
        values = f1_score(truth, of_texts, average=None)
        assert [one.value for one in teller.by_label.values() if one] == pytest.approx(values)
    asked = compared.of(ZERO_SHOT)
    assert asked.ahead is not None
    assert asked.split is not None
    assert asked.ahead.value == pytest.approx(compared.of(PROBE).f1.value - asked.f1.value)
    assert (asked.split.probe, asked.split.other) == (
        int(((read == truth) & (told != truth)).sum()),
        int(((read != truth) & (told == truth)).sum()),
    )
    assert compared.texts == dict(zip(reader.labels, np.bincount(truth).tolist(), strict=True))
    assert compared.groups == 15


def test_the_report_says_what_was_asked_and_what_was_left_out(reader: Reader, chosen: Chosen, tmp_path: Path) -> None:
    settings = Settings(command="emovllm probe compare")
    compared = compare(reader, chosen, tmp_path / "work", settings, shown=False)
    write_report(compared, question_table(reader.labels, reader.loaded.tokenizer), tmp_path / "out")
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    assert f"| probe | {compared.of(PROBE).f1} |" in markdown
    assert f"| zero-shot | {compared.of(ZERO_SHOT).f1} |" in markdown
    assert "Choose exactly one of these labels: boredom, calm, pride." in markdown
    assert "Left out: 1 texts (several labels)." in markdown
    assert "Left out: 1 texts (another label)." in markdown
    assert page.count("data:image/png;base64,") == 1
    assert "of 15 groups" in page
    assert "emovllm probe compare" in page
    assert Compared.load(tmp_path / "out") == compared
    # The texts themselves are nobody else's business.
    assert not any(text.text in page for text in chosen.texts)


def test_a_second_run_reads_what_the_first_left_and_a_fresh_one_does_not(
    reader: Reader, chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare(reader, chosen, tmp_path, shown=False)
    calls: list[Any] = []
    forward = reader.loaded.network.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert compare(reader, chosen, tmp_path, shown=False) == first
    assert not calls
    assert compare(reader, chosen, tmp_path, Settings(Measuring(fresh=True)), shown=False) == first
    assert calls
    forward.remove()


def test_texts_without_the_probes_labels_are_refused() -> None:
    with pytest.raises(DataError, match="its labels are calm, pride"):
        draw_texts([Text("yes", ("joy",), "x")], ("calm", "pride"), None, 0)


def test_texts_that_are_all_too_long_are_refused(labelled: list[Text], tokenizer: Any) -> None:
    with pytest.raises(DataError, match="at most 2"):
        readable(labelled, reads_of(tokenizer, [text.text for text in labelled], "last", False), 2, {})
