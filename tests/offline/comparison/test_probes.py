"""Runs of tiny models that the commands made, beside each other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from emovllm.errors import OptionError, ResultsError
from emovllm_offline import compare
from emovllm_offline.comparison.probes import DEPTHS, LINE, nearest
from emovllm_offline.comparison.report import depth_table, figure_table
from emovllm_offline.comparison.rows import Comparison, Point, Size, Value
from emovllm_offline.reading.compare import PROBE, ZERO_SHOT, Compared
from emovllm_offline.reading.results import Results
from emovllm_offline.reporting.tables import Table
from support.models import tiny_chat_model
from support.walk import Walk


@dataclass(frozen=True, slots=True)
class Runs:
    """small, mean: probes of one model; deep: of one with more layers, on the same texts; few: of the small one, on
    other texts; third: of three labels. asked: the small model beside `small`."""

    walk: Walk
    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def texts(*labels: str) -> list[str]:
    """Lines of texts whose label is the count of a letter, less the multiples of how many labels there are: no layer
    tells all of them, and each tells others."""
    draw = random.Random(0)
    drawn = ("".join(draw.choices("aaabcd", k=8)) for _ in range(80 * len(labels)))
    return [json.dumps({"text": text, "label": labels[text.count("a") % len(labels)]}) + "\n" for text in drawn]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    walk = Walk(tmp_path_factory.mktemp("runs"))
    runs = Runs(walk, walk.folder)
    deep = tiny_chat_model(walk.folder / "deep-model", seed=1, num_hidden_layers=8)
    walk.texts.write_text("".join(texts("anger", "fear")))
    third = walk.folder / "third.jsonl"
    third.write_text("".join(texts("anger", "fear", "calm")))

    def train(name: str, model: str, data: Path, *words: str) -> None:
        usual = ("--data", data, "--penalties", "0.1", "--held-out", "0.25", "--out", walk.folder / name)
        assert walk("probe train", model, *usual, *words) == 0

    train("small", walk.model, walk.texts)
    train("mean", walk.model, walk.texts, "--pooling", "mean")
    train("deep", deep, walk.texts)
    train("few", walk.model, walk.texts, "--limit", "100")
    train("third", walk.model, third)
    asked = ("--probe", runs["small"], "--data", walk.texts, "--limit", "8", "--out", runs["asked"])
    assert walk("probe compare", walk.model, *asked) == 0
    return runs


def column(table: Table, name: str) -> dict[str, str]:
    place = list(table.head).index(name)
    return {row[0]: row[place] for row in table.rows}


def test_each_row_has_the_figures_of_its_run(runs: Runs) -> None:
    comparison = compare([runs["small"], runs["deep"]]).comparison
    table, depths = (of(comparison.of("probe train")) for of in (figure_table, depth_table))
    for name, folder in (("model", "small"), ("deep-model", "deep")):
        results = Results.load(runs[folder])
        best = results.best
        assert column(table, "test F1")[name] == str(best.test.f1)
        assert column(table, "shuffled labels")[name] == str(best.test.control)
        assert column(table, "selectivity")[name] == str(best.test.selectivity)
        assert column(table, "depth")[name] == f"{best.depth:.2f}"
        assert column(table, "layer")[name] == f"{best.layer} of {len(results.layers)}"
        assert column(table, "n")[name] == str(sum(map(sum, results.confusion)))
        assert column(depths, "F1 at 1")[name] == str(results.layers[-1].test.f1)
    deep = Results.load(runs["deep"])
    # Depths of eight layers are eighths.
    places = {f"F1 at {depth:g}": place for depth, place in zip(DEPTHS, (0, 1, 3, 5, 7), strict=True)}
    assert {name: column(depths, name)["deep-model"] for name in places} == {
        name: str(deep.layers[place].test.f1) for name, place in places.items()
    }
    assert len({of.test.f1.value for of in deep.layers}) > 3
    assert comparison.of("probe train").notes == ()
    assert len(set(column(table, "data").values())) == 1


def test_a_model_has_the_size_of_its_weights(runs: Runs) -> None:
    from transformers import AutoModelForCausalLM

    counted = AutoModelForCausalLM.from_pretrained(runs.walk.model).num_parameters()
    rows = compare([runs["small"], runs["asked"]]).comparison
    assert {row.size for of in rows.tables for row in of.rows} == {Size(parameters=counted, layers=3, hidden=64)}


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (Size(parameters=134_515_008), "135M"),
        (Size(parameters=1_543_714_304, layers=28), "1.54B"),
        (Size(layers=30, hidden=576), "30 layers x 576"),
        (Size(layers=30), "30 layers"),
    ],
)
def test_sizes_are_told_shortly(size: Size, told: str) -> None:
    assert str(size) == told


@pytest.mark.parametrize(("depth", "place"), [(0.1, 0), (0.26, 0), (0.5, 1), (0.62, 1), (1.0, 3)])
def test_a_depth_is_that_of_the_nearest_layer(depth: float, place: int) -> None:
    points = [Point(depth=(layer + 1) / 4, value=Value(value=layer)) for layer in range(4)]
    assert nearest(points, depth) == points[place]


def test_what_the_model_answers_stands_beside_the_probe_and_the_difference_beside_its_own_alone(runs: Runs) -> None:
    compared = Compared.load(runs["asked"])
    asked = compared.of(ZERO_SHOT)
    comparison = compare([runs["small"], runs["mean"], runs["deep"], runs["asked"]]).comparison
    trained = comparison.of("probe train")
    table = figure_table(trained)
    assert column(table, "zero-shot F1") == {
        "model (small)": str(asked.f1),
        "model (mean)": str(asked.f1),
        "deep-model": "-",
    }
    assert column(table, "probe ahead by") == {
        "model (small)": str(asked.ahead),
        "model (mean)": "-",
        "deep-model": "-",
    }
    assert [note.split(":")[0] for note in trained.notes[:-1]] == ["model (mean)"]
    own = figure_table(comparison.of("probe compare"))
    assert column(own, "probe F1") == {"model": str(compared.of(PROBE).f1)}
    assert column(own, "one label always") == {"model": str(compared.tellers[-1].f1)}


def test_of_several_answers_none_stands_beside_the_probe(runs: Runs, tmp_path: Path) -> None:
    more = ("--probe", runs["small"], "--data", runs.walk.texts, "--limit", "6", "--out", tmp_path / "again")
    assert runs.walk("probe compare", runs.walk.model, *more) == 0
    comparison = compare([runs["small"], runs["asked"], f"again={tmp_path / 'again'}"]).comparison
    trained = comparison.of("probe train")
    assert column(figure_table(trained), "zero-shot F1") == {"model": "-"}
    assert "several runs of probe compare are of it (model, again)" in trained.notes[0]
    assert "Figures of different texts are not comparable" in comparison.of("probe compare").notes[0]


def test_other_texts_and_other_labels_are_told(runs: Runs) -> None:
    (texts,) = compare([runs["small"], runs["few"]]).comparison.of("probe train").notes
    assert texts.startswith("Figures of different texts are not comparable, and these runs are of 2 sets (")
    assert texts.endswith("model (few)).")
    of_texts, labels = compare([runs["small"], runs["third"]]).comparison.of("probe train").notes
    assert of_texts.startswith("Figures of different texts")
    assert labels == (
        "Figures over different labels are not comparable, and these runs have 2 sets (model (small): anger, fear; "
        "model (third): anger, calm, fear)."
    )


def test_what_was_learnt_from_may_differ_where_the_test_texts_do_not(runs: Runs, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(runs.walk.texts.read_text())
    for name, count in (("whole", 160), ("half", 80)):
        lines = runs.walk.texts.read_text().splitlines(keepends=True)[:count]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        usual = ("--data", tmp_path / f"{name}.jsonl", "--test", test, "--penalties", "0.1", "--out", tmp_path / name)
        assert runs.walk("probe train", runs.walk.model, *usual) == 0
    of = compare([str(tmp_path / "whole"), str(tmp_path / "half")]).comparison.of("probe train")
    assert of.notes == ()
    learnt = column(figure_table(of), "learnt from")
    assert int(learnt["model (whole)"]) > int(learnt["model (half)"])


def test_a_run_is_a_folder_its_file_or_either_with_a_name(runs: Runs, tmp_path: Path) -> None:
    def names(*given: str) -> list[str]:
        return [row.run for row in compare(given).comparison.of("probe train").rows]

    assert names(runs["small"]) == names(f"{runs['small']}/results.json") == ["model"]
    assert names(runs["small"], f"mine={runs['mean']}") == ["model", "mine"]
    # Folders of one name are told apart by those that they lie in.
    for place in ("a", "b"):
        (tmp_path / place / "out").mkdir(parents=True)
        (tmp_path / place / "out" / "results.json").write_text((Path(runs["small"]) / "results.json").read_text())
    assert names(str(tmp_path / "a/out"), str(tmp_path / "b/out")) == ["model (a/out)", "model (b/out)"]
    odd = tmp_path / "x=y"
    odd.mkdir()
    (odd / "results.json").write_text((Path(runs["small"]) / "results.json").read_text())
    assert names(str(odd)) == ["model"]


def test_a_name_that_is_no_models_has_the_model_beside_it(runs: Runs) -> None:
    named = figure_table(compare([f"mine={runs['mean']}"]).comparison.of("probe train"))
    assert column(named, "model") == {"mine": "model"}
    assert "model" not in figure_table(compare([runs["mean"]]).comparison.of("probe train")).head


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            lambda runs: [f"one={runs[name]}" for name in ("small", "mean")],
            "2 runs of probe train are named",
        ),
        (lambda runs: [runs["small"], f"{runs['small']}/results.json"], "is given 2 times"),
        (lambda runs: ["=x"], "expected a folder, or NAME=FOLDER"),
        (lambda runs: [runs["gone"]], "gone: no such folder; give one that holds results.json (probe train)"),
        (lambda runs: [], "give the folders"),
    ],
)
def test_runs_that_cannot_be_told_apart_or_found_are_refused(
    runs: Runs, given: Callable[[Runs], list[str]], told: str
) -> None:
    with pytest.raises(OptionError) as error:
        compare(given(runs))
    assert told in str(error.value)


def test_a_folder_of_something_else_is_refused_by_what_was_expected(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.walk("compare", runs["small"], runs.walk.model, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "model: no run that can be compared; expected a folder with one of results.json (probe train), " in told
    assert "summary.json (evaluate), circuit.json (circuit)" in told
    assert not (tmp_path / "out").exists()
    other = tmp_path / "results.json"
    other.write_text('{"format": "something-else"}')
    with pytest.raises(ResultsError, match=r"results\.json: format: Input should be 'emovllm-probe-results'"):
        compare([other])
    newer = (Path(runs["small"]) / "results.json").read_text().replace('"format_version": 1', '"format_version": 2')
    other.write_text(newer)
    with pytest.raises(ResultsError, match="format_version: Input should be 1"):
        compare([other])


def test_the_command_prints_the_table_and_writes_the_report(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert runs.walk("compare", runs["small"], runs["few"], runs["deep"], runs["asked"], "--out", out) == 0
    printed = capsys.readouterr().out
    best = Results.load(runs["deep"]).best
    assert str(best.test.f1) in printed
    assert "probe train: Figures of different texts are not comparable" in printed
    assert printed.splitlines()[-1] == str(out / "report.html")
    given = [runs["small"], runs["few"], runs["deep"], runs["asked"]]
    assert Comparison.load(out) == compare(given).comparison
    markdown, page = ((out / name).read_text() for name in ("report.md", "report.html"))
    assert markdown.startswith("# Runs beside each other\n\n3 runs of probe train, 1 run of probe compare; 2 models.")
    assert "## Over depth" in markdown
    assert "| F1 at 0.25 |" in markdown
    assert "Figures of different texts are not comparable" in page
    assert page.count("data:image/png;base64,") == 1
    # No place of this machine is in what may be passed on.
    assert str(runs.folder) not in page + (out / "comparison.json").read_text()


def test_rows_of_the_api_are_plain_values(runs: Runs, tmp_path: Path) -> None:
    made = compare([runs["small"], runs["asked"]])
    (row,) = made.table()
    results = Results.load(runs["small"])
    assert (row["run"], row["model"]) == ("model", "model")
    assert [row[f"test F1{end}"] for end in ("", ", low", ", high")] == list(results.best.test.f1.model_dump().values())
    assert row["parameters"] == results.about["size"]["parameters"]
    assert len(made.notes) == 1
    assert made.plot().png.startswith(b"\x89PNG")
    made.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.json", "report.md", "report.html"}
    with pytest.raises(KeyError):
        made.table("evaluate")
    with pytest.raises(KeyError):
        made.plot("probe compare")


def test_the_line_of_a_run_has_a_point_for_each_layer(runs: Runs) -> None:
    rows = compare([runs["small"], runs["deep"]]).comparison.of("probe train").rows
    assert [len(row.depths[LINE]) for row in rows] == [3, 8]
    for row, folder in zip(rows, ("small", "deep"), strict=True):
        for point, of in zip(row.depths[LINE], Results.load(runs[folder]).layers, strict=True):
            assert (point.depth, point.value) == (of.depth, Value.of(of.test.f1))
