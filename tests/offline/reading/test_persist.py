from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.circuit import Circuit
from emovllm.errors import CircuitError, DataError, OptionError
from emovllm.models import NAME, shipped_circuits
from emovllm.probe import probabilities
from emovllm_offline.data.texts import Text
from emovllm_offline.reading.lasted import HalfLife, Persistence
from emovllm_offline.reading.persist import Settings, Users, circuit_of, measure, users_of
from emovllm_offline.reading.persist_report import summary, write_report
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.replies import PLAIN, Ask, Steering, Way, deal, read_replies
from emovllm_offline.reading.settings import Persisting

FEW = Persisting(max_tokens=12, tokens=(1, 4, 12, 50), off_after=(3,), batch=8)


@pytest.fixture
def users(labelled: list[Text]) -> Users:
    return Users(tuple(labelled), {"several labels": 2})


def measured(reader: Reader, users: Users, circuit: Circuit | None, work: Path, **settings: Any) -> Persistence:
    chosen = Persisting(**{**vars(FEW), **settings})
    return measure(reader, users, circuit, work, Settings(chosen, command="emovllm"), shown=False)


def test_openings_are_told_beside_their_controls(
    reader: Reader, users: Users, circuit: Circuit, tmp_path: Path
) -> None:
    found = measured(reader, users, circuit, tmp_path / "work")
    assert [of.name for of in found.conditions] == ["unsteered", "prompt_last", "generation", "off after 3"]
    assert (sum(found.messages.values()), found.groups, found.length, found.layer) == (30, 15, 12, 3)
    labels = [text.labels[0] for text in users.texts]
    dealt = deal(labels, circuit.names)
    prompts = [read.ids for read in reads_of(reader.loaded.tokenizer, [t.text for t in users.texts], "last", True)]
    ways = [Way("generation", "generation")]
    asks = [*(Ask(PLAIN, i) for i in range(30)), *(Ask(ways[0], i, dealt[i]) for i in range(30))]
    steering = Steering(reader.loaded.network, circuit, 1.0)
    readings = read_replies(reader, prompts, asks, steering, FEW, (tmp_path / "other", {}), shown=False)
    plain, steered = probabilities(readings.logits).reshape(2, 30, 12, 3)
    asked = [reader.labels.index(name) for name in dealt]
    of = found.of("generation")
    assert [at.token for at in of.tokens] == [1, 4, 12]
    for at in of.tokens:
        values = steered[np.arange(30), at.token - 1, asked]
        controls = plain[np.arange(30), at.token - 1, asked]
        assert at.mean.value == pytest.approx(values.mean(), abs=1e-5)
        assert at.control.value == pytest.approx(controls.mean(), abs=1e-5)
        assert at.excess.value == pytest.approx((values - controls).mean(), abs=1e-5)
        assert at.excess.low < at.excess.value < at.excess.high
        assert (at.median, at.low, at.high) == pytest.approx(np.quantile(values, (0.5, 0.1, 0.9)), abs=1e-5)
        assert of.curve.mean[at.token - 1] == pytest.approx(values.mean(), abs=1e-5)
    own = [reader.labels.index(name) for name in labels]
    others = [plain[np.array(own) != label, 3, label].mean() for label in own]
    at = found.of("unsteered").tokens[1]
    assert at.mean.value == pytest.approx(plain[np.arange(30), 3, own].mean(), abs=1e-5)
    assert at.control.value == pytest.approx(np.mean(others), abs=1e-5)
    calm = next(one for one in found.of("unsteered").by_label if one.label == "calm")
    calms = np.array(own) == reader.labels.index("calm")
    assert calm.replies == calms.sum()
    assert calm.means[1] == pytest.approx(plain[calms, 3, reader.labels.index("calm")].mean(), abs=1e-5)
    assert found.of("off after 3").begin == 3


def test_a_neutral_message_opens_nothing(reader: Reader, circuit: Circuit, tmp_path: Path) -> None:
    neutral = Reader(reader.loaded, reader.decoder, _renamed(reader.probe), reader.distance)
    texts = [Text(f"the dog {word}", (label,), word) for word in ("walks", "runs") for label in ("calm", "neutral")]
    found = measured(neutral, Users(tuple(texts), {}), None, tmp_path)
    assert [one.label for one in found.of("unsteered").by_label] == ["calm"]
    assert found.of("unsteered").replies == 2
    assert found.messages == {"calm": 2, "neutral": 2}


def _renamed(probe: Any) -> Any:
    """boredom is neutral."""
    spec = probe.spec.model_copy(update={"labels": ("neutral", "calm", "pride")})
    return type(probe)(spec, probe.mean, probe.scale, probe.weight, probe.bias, probe.fingerprint)


def test_without_a_circuit_the_plain_model_is_measured_alone(
    reader: Reader, users: Users, circuit: Circuit, tmp_path: Path
) -> None:
    found = measured(reader, users, None, tmp_path / "plain")
    assert [of.name for of in found.conditions] == ["unsteered"]
    assert found.circuit is None
    whole = measured(reader, users, circuit, tmp_path / "all")
    assert found.of("unsteered").curve.mean == pytest.approx(whole.of("unsteered").curve.mean, abs=1e-4)


def test_messages_without_an_emotion_are_answered_with_the_circuits_alone(
    reader: Reader, circuit: Circuit, tmp_path: Path
) -> None:
    users = users_of([Text(f"dog {i}", ("positive",), f"{i}") for i in range(8)], True, reader.labels, FEW)
    found = measured(reader, users, circuit, tmp_path, conditions=("unsteered", "generation"), emotions=("pride",))
    assert [of.name for of in found.conditions] == ["generation"]
    assert [one.label for one in found.of("generation").by_label] == ["pride"]
    with pytest.raises(DataError, match="labelled texts"):
        measured(reader, users, None, tmp_path)


def test_what_cannot_be_measured_is_told(
    reader: Reader, users: Users, circuit: Circuit, tmp_path: Path, tiny: Any
) -> None:
    with pytest.raises(CircuitError, match="give --circuit"):
        measured(reader, users, None, tmp_path, conditions=("generation",))
    with pytest.raises(OptionError, match="--off-after"):
        measured(reader, users, circuit, tmp_path, conditions=("off-after",), off_after=(12,))
    with pytest.raises(OptionError, match="no anger; circuit and probe have"):
        measured(reader, users, circuit, tmp_path, emotions=("anger",))
    with pytest.raises(OptionError, match="--max-tokens 128"):
        measured(reader, users, circuit, tmp_path, max_tokens=128)
    with pytest.raises(DataError, match="several labels"):
        measured(reader, Users(users.texts[:1], {}), None, tmp_path)
    with pytest.raises(DataError, match="give shorter ones"):
        measured(reader, users, circuit, tmp_path, max_tokens=127)
    with pytest.raises(OptionError, match="--tokens 13"):
        Persisting(max_tokens=12, tokens=(13, 40))
    other = circuit.spec.model_copy(update={"model": circuit.spec.model.model_copy(update={"num_hidden_layers": 3})})
    with pytest.raises(CircuitError, match="another model"):
        measured(reader, users, _with_spec(circuit, other), tmp_path)


def _with_spec(circuit: Circuit, spec: Any) -> Circuit:
    changed = object.__new__(Circuit)
    for name in circuit.__dataclass_fields__:
        object.__setattr__(changed, name, spec if name == "spec" else getattr(circuit, name))
    return changed


def test_a_second_run_reads_what_the_first_left(
    reader: Reader, users: Users, circuit: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(reader, users, circuit, tmp_path)
    monkeypatch.setattr(reader.loaded.network, "generate", None)
    assert measured(reader, users, circuit, tmp_path) == first
    # Other tables of the same replies.
    assert [at.token for at in measured(reader, users, circuit, tmp_path, tokens=(2,)).of("unsteered").tokens] == [2]


def test_the_report_has_conditions_and_tokens(reader: Reader, users: Users, circuit: Circuit, tmp_path: Path) -> None:
    found = measured(reader, users, circuit, tmp_path / "work")
    write_report(found, tmp_path / "out")
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    at = found.of("off after 3").tokens[1]
    assert (
        f"| off after 3 | 4 | {at.median:.3f} | {at.low:.3f} to {at.high:.3f} | {at.mean} | {at.control} |" in markdown
    )
    assert "Left out: 2 texts (several labels)." in markdown
    assert "15 groups of messages alone" in markdown
    assert page.count("data:image/png;base64,") == 1
    assert Persistence.load(tmp_path / "out") == found
    assert summary(found).startswith("30 messages, replies of 12 tokens, read at layer 3 of 4")
    assert not any(text.text in page for text in users.texts)


def test_a_half_life_is_told_with_its_bounds() -> None:
    assert str(HalfLife(tokens=12, low=8, high=None, longest=90)) == "12 [8, over 90]"
    assert str(HalfLife(tokens=None, low=40, high=None, longest=90)) == "not within 90 tokens [40, over 90]"


def test_messages_are_drawn_evenly(labelled: list[Text]) -> None:
    settings = Persisting(limit=9)
    several = Text("the dog", ("calm", "pride"), "x")
    users = users_of([*labelled, several, Text("a cat", ("envy",), "y")], False, ("boredom", "calm", "pride"), settings)
    assert sorted(text.labels[0] for text in users.texts) == ["boredom"] * 3 + ["calm"] * 3 + ["pride"] * 3
    assert users.left_out == {"several labels": 1, "another label": 1}


def test_the_default_model_has_a_circuit_of_its_own() -> None:
    shipped = circuit_of("default", None)
    assert shipped is not None
    assert shipped.digest() == circuit_of("other", str(shipped_circuits() / NAME)).digest()  # type: ignore[union-attr]
    assert circuit_of("other", None) is None
