"""The model card of a circuit, in Markdown with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from emovllm.circuit import Circuit
from emovllm.circuit_files import is_repository_id

NAME = "README.md"
TAGS = ("emovllm", "emotion", "steering")
_UNMEASURED = (
    "This card was made from the circuit's own description. It does not say how well the circuit steers, nor what that "
    "costs: `emovllm evaluate` and `emovllm side-effects` measure both, and `emovllm card` tells of it."
)
LIMIT = "People who read the replies must know that a machine writes them, and that their tone is set."


def model_card(
    circuit: Circuit,
    repository: str,
    *,
    revision: str | None = None,
    probe: bool = False,
    measured: Iterable[str] = (),
    limits: Iterable[str] = (_UNMEASURED,),
) -> str:
    """What `circuit.json` says of a circuit that is in `repository`, of which `revision` is not the usual one.

    probe: whether a probe lies beside it. measured: further paragraphs, what else is known of it; limits: then those.
    """
    return compose(
        circuit,
        repository if revision is None else f"{repository}@{revision}",
        [
            *("## Strengths", "\n".join(_strengths(circuit))),
            *("## How it was made", "\n".join(_made(circuit))),
            *measured,
        ],
        limits,
        probe=probe,
    )


def compose(
    circuit: Circuit, at: str, sections: Iterable[str], limits: Iterable[str], *, said: str = "", probe: bool = False
) -> str:
    """A card: what the circuit is and how it is asked, the sections, and its limits.

    at: what `--circuit` is given. sections: paragraphs of Markdown, headings among them. limits: besides what holds of
    all. said: what is to be known first. probe: whether one lies beside it.
    """
    model = circuit.spec.model.id
    # What is no id of the hub's would be a broken link there, and a model that nobody else finds.
    known = is_repository_id(model)
    linked = f"[{model}](https://huggingface.co/{model})" if known else _plain(model)
    head = ["---", "library_name: emovllm", *([f"base_model: {model}"] if known else []), f"tags: [{', '.join(TAGS)}]"]
    parts = [
        "\n".join([*head, "---"]),
        f"# {_plain(model.rpartition('/')[2])}: emotion circuit",
        f"An emovllm circuit for {linked}: {', '.join(circuit.names)}." + (f" {said}" if said else ""),
        f"    emovllm serve {model if known else 'MODEL'} --circuit {at}{' --readout' if probe else ''}",
        f'Then send `"emotion": "{circuit.names[0]}"` with a request to `/v1/chat/completions`'
        + (', and `"emotion_readout": "tokens"` to be told what the probe reads.' if probe else "."),
        *sections,
        "## Limits",
        "\n".join(f"- {limit}" for limit in (*limits, LIMIT)),
    ]
    return "\n\n".join(parts) + "\n"


def _strengths(circuit: Circuit) -> Iterator[str]:
    scores = list(dict.fromkeys(score for emotion in circuit.spec.emotions for score in emotion.scores))
    head = ["emotion", "recommended lambda", "maximal lambda", "neurons", "heads", *scores]
    yield _row(head)
    yield "|---|" + "---:|" * (len(head) - 1)
    for emotion in circuit.spec.emotions:
        units = len(circuit.neurons[emotion.name]), len(circuit.heads[emotion.name])
        numbers = [f"{emotion.recommended:g}", f"{emotion.maximal:g}", *map(str, units)]
        figures = [f"{emotion.scores[score]:.3g}" if score in emotion.scores else "-" for score in scores]
        yield _row([emotion.name, *numbers, *figures])
    yield ""
    yield f"Strength 1.0 stands for the recommended lambda. Scope: `{circuit.spec.scope}`."
    if scores:
        yield (
            "The scores are those by which the calibration chose it, the best of the lambdas that it tried: "
            "no evaluation."
        )


def _made(circuit: Circuit) -> Iterator[str]:
    made = circuit.spec.provenance
    calibration = made.get("calibration")
    of_style = [_part(style, "name") for style in _list(made, "styles")]
    found = [
        _counted(_part(made, "dataset", "scenarios"), "scenarios", made.get("dataset")),
        f"styles {', '.join(name for name in of_style if name)}" if any(of_style) else None,
    ]
    yield from _step("Discovery", _part(made, "command"), found)
    for step in _list(made, "refinements"):
        of_replies = _counted(_part(step, "messages"), "messages", {"sha256": _part(step, "replies")})
        yield from _step("Refinement", _part(step, "command"), [of_replies])
    judge = _part(calibration, "judge", "name")
    chosen = [
        f"judge {judge}" if judge else None,
        _counted(_part(calibration, "data", "messages"), "messages", _at(calibration, "data")),
    ]
    yield from _step("Calibration, which chose the strengths", _part(calibration, "command"), chosen)
    version = _part(made, "versions", "emovllm")
    by = f"; made by emovllm {version}" if version else ""
    yield f"- Format version {circuit.spec.format_version}, digest `{circuit.digest()}`{by}."


def _step(name: str, command: str | None, about: list[str | None]) -> Iterator[str]:
    said = [f"`{command}`" if command else None, *about]
    if any(said):
        yield f"- {name}: {'; '.join(part for part in said if part)}."


def _counted(count: str | None, what: str, data: Any) -> str | None:
    """How many there were, and the beginning of the data's sha256."""
    sha256 = _part(data, "sha256")
    parts = [f"{count} {what}" if count else None, f"data `{sha256[:12]}`" if sha256 else None]
    return ", ".join(part for part in parts if part) or None


def _at(tree: Any, *path: str) -> Any:
    """What is at a path of a provenance, which may hold anything; None where there is nothing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _part(tree: Any, *path: str) -> str | None:
    """A text or number there, in a line that is no Markdown."""
    value = _at(tree, *path)
    return _plain(str(value)) or None if isinstance(value, str | int | float) else None


def _list(tree: Any, key: str) -> list[Any]:
    value = _at(tree, key)
    return value if isinstance(value, list) else []


def _plain(text: str) -> str:
    return " ".join(text.translate(str.maketrans("`|<>[]", "'/()()")).split())


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"
