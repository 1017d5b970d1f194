"""`emovllm report`: what is known of a circuit on one page that works offline, its figures inside it and beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.errors import ResultsError
from emovllm.files import write_atomically
from emovllm_offline.discovery import findings
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.reporting import plots
from emovllm_offline.reporting.page import render
from emovllm_offline.reporting.tables import Table
from emovllm_offline.storage.places import work_folder
from emovllm_offline.validation import results
from emovllm_offline.validation.results import Validation, findings_digest
from emovllm_offline.validation.sections import COMMANDS, SECTIONS, Section

PAGE = "report.html"
FIGURES = "figures"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a report may draw on; what is missing is None."""

    circuit: Circuit
    findings: Findings | None
    validation: Validation | None


def report(circuit: str | Path, work: str | Path | None = None) -> Path:
    """Writes `report.html` and `figures/*.png` into the work folder: a circuit stays two files.

    work: the folder of findings.safetensors and validation.json, of which either may be missing; beside the circuit
    by default.
    Returns: the page's path. Raises: CircuitError, FindingsError, ResultsError, OSError.
    """
    folder = Path(work) if work is not None else work_folder(circuit)
    evidence = gather(Path(circuit), folder)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    images = {}
    for section in SECTIONS:
        path = folder / FIGURES / f"{section.name}.png"
        if (source := getattr(evidence, section.needs)) is None or not section.has(source):
            # One of an earlier report would be of something else.
            path.unlink(missing_ok=True)
        else:
            images[section.name] = plots.png(section.draw(source))
            write_atomically(path, images[section.name])
    write_atomically(folder / PAGE, _page(evidence, images).encode())
    return folder / PAGE


def gather(circuit: Path, place: Path) -> Evidence:
    """Raises: CircuitError, FindingsError, ResultsError, also where the parts are of different emotions."""
    loaded = load_circuit(circuit)
    measured = Findings.load(place) if (place / findings.FILE).exists() else None
    validation = Validation.load(place) if (place / results.FILE).exists() else None
    for name, emotions in (
        ("findings", measured and measured.emotions),
        ("validation", validation and validation.emotions),
    ):
        if emotions and tuple(emotions) != loaded.names:
            raise ResultsError(
                f"{place}: the {name} are of {', '.join(emotions)}, but the circuit is of {', '.join(loaded.names)}"
            )
    return Evidence(loaded, measured, validation)


def _page(evidence: Evidence, images: Mapping[str, bytes]) -> str:
    circuit = evidence.circuit
    model = circuit.spec.model
    return render(
        "circuit.j2",
        title=f"Emotion circuit of {model.id}",
        size=(
            f"{model.num_hidden_layers} layers, hidden size {model.hidden_size}, {model.units}; "
            f"scope {circuit.spec.scope}; digest {circuit.digest()[:16]}."
        ),
        emotions=_emotions(circuit),
        notes=list(_notes(evidence)),
        sections=[
            _section(section, evidence, images.get(section.name)) for section in SECTIONS if _shown(section, evidence)
        ],
        provenance=_provenance(evidence),
    )


def _shown(section: Section, evidence: Evidence) -> bool:
    """Whether there is a figure, or a command that would measure it."""
    source = getattr(evidence, section.needs)
    return source is None or section.has(source) or section.again is not None


def _section(section: Section, evidence: Evidence, image: bytes | None) -> dict[str, Any]:
    """What the template shows of a section; no image where its figure was not measured."""
    command = COMMANDS.get(section.needs) if getattr(evidence, section.needs) is None else section.again
    shown = {"name": section.name, "title": section.title, "text": section.text, "command": command}
    if image is None:
        return shown | {"image": None}
    table = section.table(getattr(evidence, section.needs)) if section.table else None
    return shown | {"image": plots.data_uri(image), "table": table}


def _emotions(circuit: Circuit) -> Table:
    rows = []
    kinds = ["neurons", "heads", *(["experts"] if circuit.experts else [])]
    for emotion in circuit.spec.emotions:
        scores = ", ".join(f"{name} {value:.3g}" for name, value in emotion.scores.items())
        counts = (len(getattr(circuit, kind)[emotion.name]) for kind in kinds)
        rows.append([emotion.name, f"{emotion.recommended:g}", f"{emotion.maximal:g}", *map(str, counts), scores])
    return Table(["emotion", "recommended lambda", "maximal lambda", *kinds, "scores"], rows)


def _provenance(evidence: Evidence) -> Table:
    rows = [("of the circuit", ""), *_flat(evidence.circuit.spec.provenance)]
    if validation := evidence.validation:
        counts = {"items": validation.items, "scenarios": validation.scenarios}
        rows += [("of the validation", ""), *_flat(validation.inputs | counts)]
    return Table(["what", "value"], rows)


def _notes(evidence: Evidence) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    if evidence.circuit.experts:
        yield (
            "Neurons of routed experts are among the circuit's: they are added as constant vectors, and neither the "
            "figures nor the validation are of them."
        )
    validated = evidence.validation
    if validated is None:
        return
    if evidence.findings is not None and validated.inputs.get("findings") != findings_digest(evidence.findings):
        yield "The validation is of other findings than those beside it: run emovllm validate --fresh."
    dataset = evidence.circuit.spec.provenance.get("dataset")
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
