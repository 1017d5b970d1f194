"""Circuits beside each other: how large they are, and whether their units matter more than random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.errors import ResultsError
from emovllm_offline.comparison.rows import SHORT, Row, Size, Value
from emovllm_offline.storage.places import work_folder
from emovllm_offline.validation import results
from emovllm_offline.validation.results import Validation


@dataclass(frozen=True, slots=True)
class Validated:
    """A circuit, and the validation beside it, where there is one."""

    circuit: Circuit
    validation: Validation | None

    @property
    def model(self) -> str:
        return self.circuit.spec.model.id

    @property
    def about(self) -> dict[str, Any]:
        return self.circuit.spec.provenance

    @classmethod
    def load(cls, folder: Path) -> Validated:
        """Raises: CircuitError, ResultsError."""
        circuit, work = load_circuit(folder), work_folder(folder)
        validation = Validation.load(work) if (work / results.FILE).is_file() else None
        if validation is not None and tuple(validation.emotions) != circuit.names:
            told = f"the validation is of {', '.join(validation.emotions)}, the circuit beside it of"
            raise ResultsError(f"{work}: {told} {', '.join(circuit.names)}")
        return cls(circuit, validation)


def rows(name: str, found: Validated, size: Size | None) -> list[Row]:
    """One: of all emotions."""
    circuit, validation = found.circuit, found.validation
    spec, emotions = circuit.spec, circuit.names
    dataset = found.about.get("dataset")
    strengths = [emotion.recommended for emotion in spec.emotions]
    return [
        Row(
            run=name,
            model=found.model,
            size=size,
            labels=emotions,
            texts="" if validation is None else str(validation.inputs.get("data", "")),
            count=0 if validation is None else validation.scenarios,
            facts={
                "found on": dataset["sha256"][:SHORT] if isinstance(dataset, dict) and "sha256" in dataset else "-",
                "neurons": _each([len(circuit.neurons[emotion]) for emotion in emotions]),
                "heads": _each([len(circuit.heads[emotion]) for emotion in emotions]),
                "strengths": _each(strengths),
                "refined": str(len(found.about.get("refinements", []))),
                "digest": circuit.digest()[:SHORT],
            },
            figures=_validated(validation),
        )
    ]


def size_of(found: Validated) -> Size:
    model = found.circuit.spec.model
    return Size(layers=model.num_hidden_layers, hidden=model.hidden_size)


def notes(found: dict[str, Validated]) -> list[str]:
    """What the figures of these circuits are."""
    lacking = [name for name, one in found.items() if one.validation is None]
    said = [
        "Apart: the share of sweeps (ablation and enhancement, of neurons and of heads, at each site, in each emotion) "
        "in which the largest number of the circuit's units that was tried changes the emotion's score, as it should, "
        "by more than as many random ones do, with 95% intervals that do not meet. States F1: of a linear probe of the "
        "states of the prompts that ask for the emotions, at the best layer. Both are of the units as they were found; "
        "what refine made of them is measured by emovllm evaluate."
    ]
    if lacking:
        said.append(f"Not validated: {', '.join(lacking)}. `emovllm validate` does, beside random units.")
    return said


def _validated(validation: Validation | None) -> dict[str, Value | None]:
    if validation is None:
        return {"apart": None, "states F1": None}
    apart = sum(curve.k[-1] in curve.separated() for curve in validation.curves)
    return {"apart": Value.of(apart / len(validation.curves)), "states F1": Value.of(max(validation.macro_f1()))}


def _each(values: Sequence[float]) -> str:
    """The least and the largest, over the emotions."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
