"""`emovllm show`: a circuit as tables on the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from os import PathLike

from rich.console import Console
from rich.json import JSON
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import load_circuit

# The longest part of a name on one line.
NAME = 16


def show(source: str | PathLike[str]) -> None:
    """Prints what a circuit is of, what it may do, where its units are, and how much the emotions share.

    Raises: CircuitError.
    """
    circuit = load_circuit(source)
    console = Console()
    spec = circuit.spec
    model = spec.model
    about = (
        f" ({model.architecture}): {model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.units}\n"
        f"scope {spec.scope}, digest {circuit.digest()[:16]}"
    )
    if circuit.experts:
        about += "\nneurons of routed experts are added as constant vectors, at the output of their blocks"
    console.print(Text.assemble((model.id, "bold"), about))
    tables = [_strengths(circuit, console.width), _scores(circuit, console.width), _layers(circuit, console.width)]
    if len(circuit.names) > 1:
        tables += [_overlaps(circuit, kind, console.width) for kind in ("neurons", "heads")]
    for table in itertools.chain(*tables):
        console.print(table)
    if spec.provenance:
        console.print("[bold]provenance[/]")
        provenance = JSON.from_data(spec.provenance).text
        # Its lines may be longer than the terminal's.
        provenance.no_wrap, provenance.overflow = False, "fold"
        console.print(provenance)


def _strengths(circuit: Circuit, width: int) -> Iterator[Table]:
    def cell(name: str, column: str) -> str:
        emotion = circuit.spec.emotion(name)
        return {
            "recommended lambda": f"{emotion.recommended:g}",
            "maximal lambda": f"{emotion.maximal:g}",
            "neurons": str(len(circuit.neurons[name])),
            "heads": str(len(circuit.heads[name])),
            "experts": str(len(circuit.experts[name])) if circuit.experts else "",
        }[column]

    columns = ["recommended lambda", "maximal lambda", "neurons", "heads", *(["experts"] if circuit.experts else [])]
    return _blocks("emotions", ("emotion", circuit.names), columns, cell, width)


def _scores(circuit: Circuit, width: int) -> Iterator[Table]:
    scores = {emotion.name: emotion.scores for emotion in circuit.spec.emotions}
    columns = list(dict.fromkeys(score for of_emotion in scores.values() for score in of_emotion))

    def cell(name: str, column: str) -> str:
        return f"{scores[name][column]:.3g}" if column in scores[name] else "-"

    return _blocks("scores", ("emotion", circuit.names), columns, cell, width)


def _layers(circuit: Circuit, width: int) -> Iterator[Table]:
    def cell(layer: str, name: str) -> str:
        of_kinds = [kind[name].layer for kind in (circuit.neurons, circuit.heads)]
        if circuit.experts:
            of_kinds.append(circuit.experts[name].layer)
        return "+".join(str(int((layers == int(layer)).sum())) for layers in of_kinds)

    layers = [str(layer) for layer in range(circuit.spec.model.num_hidden_layers)]
    title = "neurons+heads+neurons of routed experts per layer" if circuit.experts else "neurons+heads per layer"
    return _blocks(title, ("layer", layers), circuit.names, cell, width)


def _overlaps(circuit: Circuit, kind: str, width: int) -> Iterator[Table]:
    units: dict[str, Components] = dict(getattr(circuit, kind))
    pairs = {name: set(zip(part.layer.tolist(), part.index.tolist(), strict=True)) for name, part in units.items()}
    values = [jaccard(pairs[one], pairs[other]) for one, other in combinations(circuit.names, 2)]
    title = f"overlap of {kind} (Jaccard), mean {sum(values) / len(values):.3f}"

    def cell(one: str, other: str) -> str:
        return f"{jaccard(pairs[one], pairs[other]):.2f}"

    return _blocks(title, ("", circuit.names), circuit.names, cell, width)


def _blocks(
    title: str,
    rows: tuple[str, Sequence[str]],
    columns: Sequence[str],
    cell: Callable[[str, str], str],
    width: int,
) -> Iterator[Table]:
    """A table, cut into several with the same rows where its columns do not fit side by side; long names are folded.

    rows: what they are, and their names. cell: of a row's and a column's name. width: in characters.
    """
    head, names = rows
    first = min(NAME, max(map(len, (head, *names))))
    cells = {column: [cell(name, column) for name in names] for column in columns}
    # Beside its text, a column takes two spaces and a line.
    widths = {column: max(min(NAME, _longest_word(column)), *map(len, cells[column])) for column in columns}
    left = list(columns)
    while left:
        count, room = 0, width - first - 4
        while count < len(left) and (count == 0 or widths[left[count]] + 3 <= room):
            room -= widths[left[count]] + 3
            count += 1
        chosen, left = left[:count], left[count:]
        table = Table(title=title or None, title_justify="left")
        table.add_column(head, width=first, overflow="fold")
        for column in chosen:
            table.add_column(escape(column), width=widths[column], overflow="fold", justify="right")
        for number, name in enumerate(names):
            table.add_row(name, *(cells[column][number] for column in chosen))
        yield table
        title = ""


def _longest_word(name: str) -> int:
    return max(map(len, name.split()), default=1)


def jaccard(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    """Shared units over all units; 0 where both are empty."""
    return len(one & other) / len(one | other) if one | other else 0.0
