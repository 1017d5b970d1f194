"""`emovllm report`: what is known of a circuit on one page that works offline, its figures inside it and beside it."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.errors import ResultsError
from emovllm.files import write_atomically
from emovllm_offline.discovery import findings
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.storage.places import work_folder
from emovllm_offline.validation import figures, results
from emovllm_offline.validation.results import Validation, findings_digest

PAGE = "report.html"
FIGURES = "figures"

PAGE_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin:2.5rem 0 .4rem;border-top:1px solid #ccc;padding-top:1rem}
p{max-width:46rem}img{max-width:100%;height:auto}
table{display:block;overflow-x:auto;border-collapse:collapse;margin:.8rem 0}
td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;vertical-align:top}th{background:#f4f4f4}
td.number{white-space:nowrap;text-align:right;font-variant-numeric:tabular-nums}code{overflow-wrap:anywhere}
.note{border-left:4px solid #E69F00;padding:.2rem .8rem;background:#fdf6e6}"""


@dataclass(frozen=True, slots=True)
class Material:
    """All that a report may draw on; what is missing is None."""

    circuit: Circuit
    findings: Findings | None
    validation: Validation | None


@dataclass(frozen=True, slots=True)
class Section:
    """One figure: `draw` takes what `needs` names; `table` (rows, the first of them the head) stands below it."""

    name: str
    title: str
    text: str
    needs: str
    draw: Callable[[Any], Any]
    table: Callable[[Any], list[list[str]]] | None = None


# What makes the material of a section.
COMMANDS = {"findings": "emovllm discover", "validation": "emovllm validate"}


def sections() -> list[Section]:
    """The figures of a report, in its order."""

    def sweep(mode: str, kind: str, text: str) -> Section:
        return Section(
            f"{mode}_{kind}",
            f"{mode.capitalize()} of {kind}",
            text,
            "validation",
            lambda validated: figures.sweep(validated, mode, kind),
            lambda validated: sweep_table(validated, mode, kind),
        )

    ablation = (
        "The top k {0} of every layer are zeroed at the last token of prompts that elicit the emotion. The score is "
        "the sum over layers of the projection of the residual after the MLP on the layer's direction of the emotion; "
        "its mean change against k = 0 is shown. Bands are 95% confidence intervals (Student's t): over scenarios for "
        "the chosen {0}, over seeds for random ones (grey). Where the chosen ones carry the emotion, their line is "
        "below the grey one. The dotted line is where the score would be without all that sets these prompts apart "
        "from the average emotion's. The {0} were chosen by what they add along the same directions: a fall of some "
        "size is to be expected, and a change far beyond the dotted line means that more than the emotion was "
        "destroyed."
    )
    enhancement = (
        "To the top k {0} of every layer, at the last token of prompts without an emotion, lambda times their "
        "difference vectors are added; the score is that of the ablation. Random {0} receive their own difference "
        "vectors: with all {0} of a layer the two lines meet. Where the chosen ones bring the emotion forth, their "
        "line is above the grey one. The dotted line is by how much prompts that elicit the emotion exceed those of "
        "the average emotion."
    )
    return [
        Section(
            "units",
            "Neurons and heads of the circuit",
            "How many units of each layer the circuit of each emotion acts on. The number of a layer follows its "
            "importance; every layer has a minimum.",
            "circuit",
            figures.units,
        ),
        Section(
            "overlap",
            "Overlap between emotions",
            "Units that two emotions share, over the units that either has (Jaccard index): 0 for none in common, "
            "1 for the same. Low values off the diagonal mean that the emotions use different units.",
            "circuit",
            figures.overlap,
        ),
        Section(
            "importance",
            "Importance of the sublayers",
            "How far a push along the emotion's direction right after one sublayer moves the model's final state "
            "along the emotion's late direction, divided by the size of the push. Higher: what is written there "
            "reaches the output; 0: it is lost; below 0: it is turned around.",
            "findings",
            figures.importance,
        ),
        Section(
            "similarity",
            "Directions across sublayers",
            "Cosine between the emotion directions of every two sublayers, averaged over the emotions. A block "
            "near 1 is a stretch of layers that represent emotions alike; the reference direction comes from such "
            "a band of late layers.",
            "findings",
            figures.similarity,
        ),
        Section(
            "components",
            "Principal components of the hidden states",
            "Each point is one prompt that elicits an emotion: the state after a layer's MLP, at the tokens that "
            "discovery reads, on the two directions in which the states of that layer vary most. Clusters of one "
            "colour mean that the layer tells the emotions apart; prompts also differ in their wording, which "
            "makes clusters of its own.",
            "validation",
            figures.components,
        ),
        Section(
            "probe",
            "Linear probe",
            "How well a linear classifier (ridge regression) names the emotion from the state after each layer's "
            "MLP. Cross-validated: it has seen neither the scenario nor, where the style has several, the wording "
            "of a prompt that it judges. F1 is 1 when all is right. Replies that the style puts into the model's "
            "mouth make it easy in every layer: emotions have words of their own. Right: the share of the variance "
            "on the first three principal components.",
            "validation",
            figures.probe,
        ),
        sweep("ablation", "neurons", ablation.format("neurons")),
        sweep("ablation", "heads", ablation.format("heads")),
        sweep("enhancement", "neurons", enhancement.format("neurons")),
        sweep("enhancement", "heads", enhancement.format("heads")),
    ]


def sweep_table(validated: Validation, mode: str, kind: str) -> list[list[str]]:
    """The numbers of a sweep: the change and, in brackets, that of random units, * where the intervals are apart."""
    curves = [figures.find_curve(validated, mode, kind, emotion) for emotion in validated.emotions]
    rows = [["emotion", "own share", *(f"k = {k}" for k in curves[0].k[1:])]]
    for curve, signal in zip(curves, validated.signal("mlp"), strict=True):
        apart = curve.separated()
        points = list(zip(curve.k, curve.mean, curve.random_mean, strict=True))[1:]
        cells = [f"{_number(change)} ({_number(control)}){'*' if k in apart else ''}" for k, change, control in points]
        rows.append([curve.emotion, _number(signal), *cells])
    return rows


def _number(value: float) -> str:
    return str(round(value)) if abs(value) >= 10 else f"{value:.2g}"


def report(circuit: str | Path, work: str | Path | None = None) -> Path:
    """Writes `report.html` and `figures/*.png` into the work folder: a circuit stays two files.

    work: the folder of findings.safetensors and validation.json, of which either may be missing; beside the circuit
    by default.
    Returns: the page's path. Raises: CircuitError, FindingsError, ResultsError, OSError.
    """
    folder = Path(work) if work is not None else work_folder(circuit)
    material = gather(Path(circuit), folder)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    parts = []
    for section in sections():
        source = getattr(material, section.needs)
        path = folder / FIGURES / f"{section.name}.png"
        image = None if source is None else figures.png(section.draw(source))
        if image is None:
            # One of an earlier report would be of something else.
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, image)
        parts.append(_section(section, source, image))
    write_atomically(folder / PAGE, _page(material, parts).encode())
    return folder / PAGE


def gather(circuit: Path, place: Path) -> Material:
    """Raises: CircuitError, FindingsError, ResultsError, also where the parts are of different emotions."""
    loaded = load_circuit(circuit)
    found = Findings.load(place) if (place / findings.FILE).exists() else None
    validated = Validation.load(place) if (place / results.FILE).exists() else None
    for name, emotions in (
        ("findings", found and found.emotions),
        ("validation", validated and validated.emotions),
    ):
        if emotions and tuple(emotions) != loaded.names:
            raise ResultsError(
                f"{place}: the {name} are of {', '.join(emotions)}, but the circuit is of {', '.join(loaded.names)}"
            )
    return Material(loaded, found, validated)


def _section(section: Section, source: Any, image: bytes | None) -> str:
    title = html.escape(section.title)
    if image is None:
        command = COMMANDS[section.needs]
        return (
            f'<h2 id="{section.name}">{title}</h2>\n<p class="note">Not measured yet: <code>{command}</code> does.</p>'
        )
    data = base64.b64encode(image).decode()
    table = ""
    if section.table:
        table = f"{html_table(section.table(source))}\n<p>In brackets: random units. *: the intervals are apart.</p>"
    return (
        f'<h2 id="{section.name}">{title}</h2>\n<p>{html.escape(section.text)}</p>\n'
        f'<img alt="{title}" src="data:image/png;base64,{data}">\n{table}'
    )


def _page(material: Material, parts: list[str]) -> str:
    spec = material.circuit.spec
    model = spec.model
    title = html.escape(f"Emotion circuit of {model.id}")
    size = (
        f"{model.num_hidden_layers} layers, hidden size {model.hidden_size}, {model.intermediate_size} neurons and "
        f"{model.num_attention_heads} heads of {model.head_dim} in each layer; scope {spec.scope}; "
        f"digest {material.circuit.digest()[:16]}."
    )
    emotions = [["emotion", "recommended lambda", "maximal lambda", "neurons", "heads", "scores"]]
    for emotion in spec.emotions:
        scores = ", ".join(f"{name} {value:.3g}" for name, value in emotion.scores.items())
        counts = (len(getattr(material.circuit, kind)[emotion.name]) for kind in ("neurons", "heads"))
        emotions.append([emotion.name, f"{emotion.recommended:g}", f"{emotion.maximal:g}", *map(str, counts), scores])
    provenance = [["of the circuit", ""], *(list(row) for row in _flat(spec.provenance))]
    if material.validation is not None:
        counted = {"items": material.validation.items, "scenarios": material.validation.scenarios}
        provenance += [["of the validation", ""], *(list(row) for row in _flat(material.validation.inputs | counted))]
    notes = "\n".join(f'<p class="note">{html.escape(note)}</p>' for note in _notes(material))
    links = " · ".join(f'<a href="#{part.name}">{html.escape(part.title)}</a>' for part in sections())
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{PAGE_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{html.escape(size)}</p>
{html_table(emotions)}
{notes}
<p>{links}</p>
{body}
<h2 id="provenance">Provenance</h2>
{html_table([["what", "value"], *provenance])}
</body>
</html>
"""


def _notes(material: Material) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    validated = material.validation
    if validated is None:
        return
    if material.findings is not None and validated.inputs.get("findings") != findings_digest(material.findings):
        yield "The validation is of other findings than those beside it: run emovllm validate --fresh."
    dataset = material.circuit.spec.provenance.get("dataset")
    if isinstance(dataset, dict) and dataset.get("sha256") == validated.inputs.get("data"):
        yield (
            "Validated on the scenarios of the discovery itself: scores and probe may flatter the circuit. "
            "Give emovllm validate --data a set of its own."
        )
    if validated.scenarios < 20:
        yield f"Only {validated.scenarios} scenarios were used to validate: the figures are a first look."


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def html_table(rows: list[list[str]]) -> str:
    def cell(text: str) -> str:
        number = bool(re.fullmatch(r"[+-]?[\d.]+( \([+-]?[\d.]+\)\*?)?", text))
        return f'<td class="number">{html.escape(text)}</td>' if number else f"<td>{html.escape(text)}</td>"

    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(cell, row)) + "</tr>" for row in body]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
