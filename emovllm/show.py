"""`emovllm show`: a circuit as tables on the terminal."""

from __future__ import annotations

import json
from itertools import combinations
from os import PathLike

from rich.console import Console
from rich.table import Table

from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import load_circuit


def show(source: str | PathLike[str]) -> None:
    """Prints what a circuit is of, what it may do, where its units are, and how much the emotions share.

    Raises: CircuitError.
    """
    circuit = load_circuit(source)
    console = Console()
    spec = circuit.spec
    model = spec.model
    console.print(
        f"[bold]{model.id}[/] ({model.architecture}): {model.num_hidden_layers} layers, hidden {model.hidden_size}, "
        f"{model.intermediate_size} neurons and {model.num_attention_heads} heads of {model.head_dim} in each\n"
        f"scope {spec.scope}, digest {circuit.digest()[:16]}",
        highlight=False,
    )
    console.print(_strengths(circuit))
    console.print(_layers(circuit))
    if len(circuit.names) > 1:
        console.print(_overlaps(circuit, "neurons"))
        console.print(_overlaps(circuit, "heads"))
    if spec.provenance:
        console.print("[bold]provenance[/]")
        console.print_json(json.dumps(spec.provenance))


def _strengths(circuit: Circuit) -> Table:
    table = Table(title="emotions", title_justify="left")
    for column in ("emotion", "recommended lambda", "maximal lambda", "neurons", "heads", "scores"):
        table.add_column(column, justify="left" if column in ("emotion", "scores") else "right")
    for emotion in circuit.spec.emotions:
        table.add_row(
            emotion.name,
            f"{emotion.recommended:g}",
            f"{emotion.maximal:g}",
            str(len(circuit.neurons[emotion.name])),
            str(len(circuit.heads[emotion.name])),
            ", ".join(f"{name} {value:.3g}" for name, value in emotion.scores.items()) or "-",
        )
    return table


def _layers(circuit: Circuit) -> Table:
    table = Table(title="neurons+heads per layer", title_justify="left")
    table.add_column("layer", justify="right")
    for name in circuit.names:
        table.add_column(name, justify="right")
    for layer in range(circuit.spec.model.num_hidden_layers):
        cells = [
            f"{int((circuit.neurons[name].layer == layer).sum())}+{int((circuit.heads[name].layer == layer).sum())}"
            for name in circuit.names
        ]
        table.add_row(str(layer), *cells)
    return table


def _overlaps(circuit: Circuit, kind: str) -> Table:
    units: dict[str, Components] = dict(getattr(circuit, kind))
    pairs = {name: set(zip(part.layer.tolist(), part.index.tolist(), strict=True)) for name, part in units.items()}
    values = [jaccard(pairs[one], pairs[other]) for one, other in combinations(circuit.names, 2)]
    table = Table(title=f"overlap of {kind} (Jaccard), mean {sum(values) / len(values):.3f}", title_justify="left")
    table.add_column("")
    for name in circuit.names:
        table.add_column(name, justify="right")
    for one in circuit.names:
        table.add_row(one, *(f"{jaccard(pairs[one], pairs[other]):.2f}" for other in circuit.names))
    return table


def jaccard(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    """Shared units over all units; 0 where both are empty."""
    return len(one & other) / len(one | other) if one | other else 0.0
