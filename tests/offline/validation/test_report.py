import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.cli import main
from emovllm.spec import CircuitSpec
from emovllm_offline.data.sev import digest
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.model.find import find_decoder
from emovllm_offline.validation import figures, report, sublayer_figures
from emovllm_offline.validation.plan import Plan, Settings
from emovllm_offline.validation.results import Validation
from emovllm_offline.validation.sections import sweep_table
from emovllm_offline.validation.validate import validate
from offline.conftest import PNG, tiny_model
from support.circuits import random_circuit

NAMES = ("calm", "pride", "boredom")
FIGURES = [
    "units",
    "overlap",
    "importance",
    "importance_by_alpha",
    "similarity",
    "similarity_by_emotion",
    "components",
    "probe",
    "ablation_neurons",
    "ablation_heads",
    "enhancement_neurons",
    "enhancement_heads",
]
OF_CIRCUIT, OF_FINDINGS = FIGURES[:2], FIGURES[2:6]


class Page(HTMLParser):
    """What a browser would fetch, and the texts of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [attributes[name] for name in ("src", "href", "data", "action") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.images += [attributes["src"]] if tag == "img" else []

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tokenizer, records, style):
    """A folder with a circuit, its findings and its validation, all of a tiny model."""
    folder = tmp_path_factory.mktemp("measured")
    model = tiny_model("llama")
    model.save_pretrained(folder / "tiny")
    random_circuit(folder / "tiny", folder / "circuit", names=NAMES)
    rng = np.random.default_rng(0)
    shapes = {
        "attn_directions": (3, 4, 32),
        "mlp_directions": (3, 4, 32),
        "neurons": (3, 4, 64),
        "heads": (3, 4, 4),
        "mlp_delta": (3, 4, 64),
        "attn_delta": (3, 4, 32),
        "sigma": (8,),
        "importance": (3, 8),
        "similarity": (8, 8),
        "importance_by_alpha": (3, 8, 4),
        "alphas": (4,),
    }
    findings = Findings(NAMES, 6, **{name: rng.standard_normal(shape) for name, shape in shapes.items()})
    findings.save(folder / "circuit.work")
    validate(
        find_decoder(model),
        tokenizer,
        findings,
        records,
        [style],
        out=folder / "circuit.work",
        settings=Settings(plan=Plan(neurons=(4, 16), heads=(1, 2), seeds=2)),
    )
    return folder


@pytest.fixture
def place(measured, tmp_path):
    """Such a folder of the test's own."""
    return shutil.copytree(measured, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def reported(measured, tmp_path_factory):
    """Such a folder with its report."""
    folder = shutil.copytree(measured, tmp_path_factory.mktemp("reported"), dirs_exist_ok=True)
    report.report(folder / "circuit")
    return folder


def described(place, **changes) -> CircuitSpec:
    """Changes the circuit's JSON."""
    circuit = load_circuit(place / "circuit")
    save_circuit(replace(circuit, spec=circuit.spec.model_copy(update=changes)), place / "circuit")


def test_report_has_every_figure_in_the_page_and_beside_it(reported):
    page = Page((reported / "circuit.work" / "report.html").read_text())
    assert [name for name in page.ids if name != "provenance"] == FIGURES
    assert len(page.images) == len(FIGURES)
    written = {file.stem: file.read_bytes() for file in (reported / "circuit.work" / "figures").iterdir()}
    assert sorted(written) == sorted(FIGURES)
    assert all(data.startswith(PNG) and len(data) > 5000 for data in written.values())


def test_report_needs_no_network(place, unrendered):
    described(place, provenance={"note": "<a href='http://example.org'>see</a>"})
    text = report.report(place / "circuit").read_text()
    page = Page(text)
    assert {link.split(",")[0] for link in page.links if not link.startswith("#")} == {"data:image/png;base64"}
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", text)
    assert "<a href='http://example.org'>see</a>" in "".join(page.texts)  # shown, not followed


def test_circuit_still_loads_beside_its_report(place, unrendered):
    before = load_circuit(place / "circuit").digest()
    report.report(place / "circuit")
    assert load_circuit(place / "circuit").digest() == before


def test_report_repeats_exactly(reported, place):
    path = report.report(place / "circuit")
    assert path == place / "circuit.work" / "report.html"
    assert path.read_bytes() == (reported / "circuit.work" / "report.html").read_bytes()


def test_what_was_not_measured_is_left_out_and_names_its_command(place, unrendered):
    report.report(place / "circuit")
    (place / "circuit.work" / "validation.json").unlink()
    page = Page(report.report(place / "circuit").read_text())
    assert len(page.images) == len(OF_CIRCUIT + OF_FINDINGS)
    assert page.texts.count("emovllm validate") == len(FIGURES) - len(page.images)
    # Figures of the earlier report must not be taken for this one's.
    assert sorted(file.stem for file in (place / "circuit.work" / "figures").iterdir()) == sorted(
        OF_CIRCUIT + OF_FINDINGS
    )
    (place / "circuit.work" / "findings.safetensors").unlink()
    page = Page(report.report(place / "circuit").read_text())
    assert len(page.images) == len(OF_CIRCUIT)
    assert page.texts.count("emovllm discover") == len(OF_FINDINGS)


def test_importance_by_alpha_has_a_line_for_each_alpha_in_each_emotions_panel(place):
    findings = Findings.load(place / "circuit.work")
    axes = sublayer_figures.importance_by_alpha(findings).axes
    assert [ax.get_title(loc="left") for ax in axes] == list(NAMES)
    for ax, profile, mean in zip(axes, findings.importance_by_alpha, findings.importance, strict=True):
        *lines, dashed, _ = (np.asarray(line.get_ydata()) for line in ax.lines)
        np.testing.assert_array_equal(lines, profile.T)
        np.testing.assert_array_equal(dashed, mean)


def test_each_emotion_has_the_cosines_of_its_own_directions(place):
    findings = Findings.load(place / "circuit.work")
    findings.mlp_directions[1, 3] = -findings.attn_directions[1, 0]
    *axes, _ = sublayer_figures.similarity_by_emotion(findings).axes
    assert [ax.get_title(loc="left") for ax in axes] == list(NAMES)
    drawn = np.array([ax.images[0].get_array() for ax in axes])
    assert drawn.shape == (3, 8, 8)
    # A0 and M3 in the order A0, M0, A1, ...
    assert drawn[1, 0, 7] == pytest.approx(-(findings.attn_directions[1, 0] ** 2).sum())
    one = findings.attn_directions[2, 1] @ findings.mlp_directions[2, 0]
    assert drawn[2, 2, 1] == pytest.approx(one)
    assert drawn[2, 1, 2] == pytest.approx(one)


def test_without_importance_by_alpha_nothing_is_said_of_it(place, unrendered):
    report.report(place / "circuit")
    findings = Findings.load(place / "circuit.work")
    replace(findings, importance_by_alpha=None, alphas=None).save(place / "circuit.work")
    page = Page(report.report(place / "circuit").read_text())
    assert [name for name in page.ids if name != "provenance"] == [n for n in FIGURES if n != "importance_by_alpha"]
    assert not (place / "circuit.work" / "figures" / "importance_by_alpha.png").exists()
    assert "emovllm discover" not in page.texts


def test_work_folder_may_be_elsewhere(place, unrendered):
    (place / "circuit.work").rename(place / "elsewhere")
    assert len(Page(report.report(place / "circuit", place / "elsewhere").read_text()).images) == len(FIGURES)


def test_provenance_and_emotions_are_tables(place, unrendered):
    described(place, provenance={"dataset": {"sha256": "abc123"}, "seed": 4})
    texts = Page(report.report(place / "circuit").read_text()).texts
    assert [texts[texts.index("dataset.sha256") + 1], texts[texts.index("seed") + 1]] == ["abc123", "4"]
    assert {"calm", "plan.seeds", "scenarios"} <= set(texts)


def test_notes_warn_of_weak_evidence(place, records, unrendered):
    text = report.report(place / "circuit").read_text()
    assert "Only 2 scenarios were used" in text
    assert "scenarios of the discovery itself" not in text
    described(place, provenance={"dataset": {"sha256": digest(records)}})
    assert "scenarios of the discovery itself" in report.report(place / "circuit").read_text()
    assert "of other findings" not in text
    findings = Findings.load(place / "circuit.work")
    replace(findings, groups=7).save(place / "circuit.work")
    assert "of other findings" in report.report(place / "circuit").read_text()


def test_sweep_table_marks_where_the_intervals_are_apart(place):
    validation = Validation.load(place / "circuit.work")
    curve = figures.find_curve(validation, "ablation", "heads", "pride")
    clear = replace(
        curve,
        mean=[0.0, -5.0, -9.0],
        high=[0.0, -4.0, -8.0],
        random_low=[0.0, -4.5, -1.0],
        random_mean=[0.0, -2.0, 0.5],
    )
    validation.curves[validation.curves.index(curve)] = clear
    table = sweep_table(validation, "ablation", "heads")
    assert table.head == ["emotion", "own share", "k = 1", "k = 2"]
    row = table.rows[1]
    assert (row[0], row[2:]) == ("pride", ["-5 (-2)", "-9 (0.5)*"])
    assert clear.separated() == [2]
    assert replace(clear, mode="enhancement", low=[0.0, 1.0, 0.0], random_high=[0.0, 0.5, 0.0]).separated() == [1]


def test_destroyed_residual_does_not_flatten_a_sweep(place):
    validation = Validation.load(place / "circuit.work")
    curve = figures.find_curve(validation, "ablation", "heads", "calm")
    curve.mean[-1] = 1e6
    (axes, *_) = figures.sweep(validation, "ablation", "heads").axes
    assert axes.get_yscale() == "symlog"
    assert figures.sweep(validation, "enhancement", "heads").axes[0].get_yscale() == "linear"


@pytest.fixture
def command():
    def run(*arguments: str) -> int:
        return main(["report", *arguments])

    return run


def test_command_prints_where_the_page_is(command, place, capsys, unrendered):
    assert command(str(place / "circuit")) == 0
    assert capsys.readouterr().out == f"{place / 'circuit.work' / 'report.html'}\n"


def test_mistakes_are_explained(command, place, capsys):
    assert command(str(place / "nowhere")) == 2
    assert "no such circuit folder" in capsys.readouterr().err
    random_circuit(place / "tiny", place / "other", names=("calm", "joy"))
    assert command(str(place / "other"), "--work", str(place / "circuit.work")) == 2
    assert "findings are of calm, pride, boredom, but the circuit is of calm, joy" in capsys.readouterr().err
