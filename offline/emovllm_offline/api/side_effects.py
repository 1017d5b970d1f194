"""What a circuit costs beside the tone, by the engine: the model is served in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emovllm.circuit import Circuit
from emovllm_offline.api.results import Picture, Row
from emovllm_offline.api.serving import Server, place_of, refuse_without_circuit, where_of
from emovllm_offline.data.side_effects import load_items
from emovllm_offline.evaluation import side_effects_report as report
from emovllm_offline.evaluation.settings import RunSettings
from emovllm_offline.evaluation.side_effects import SideEffects, measure
from emovllm_offline.reading.document import PAGE


@dataclass(frozen=True, slots=True)
class SideEffectsRun:
    """found: every share with its interval, and every reply. folder: holds all files, `report.html` among them."""

    found: SideEffects
    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    def table(self) -> list[Row]:
        """Of each kind: the plain replies, then at each strength those of `all` emotions and of each. right, none: the
        shares that are right, and in which what counts is not there; change: of `right` from the plain replies to the
        same items, None of these. Intervals end with `, low` and `, high`."""
        return [
            {
                "kind": effect.kind,
                "emotion": effect.emotion,
                "strength": effect.strength,
                "replies": effect.replies,
                "none": effect.none,
                **{
                    f"{name}{end}": figure and getattr(figure, at)
                    for name, figure in (("right", effect.right), ("change", effect.change))
                    for end, at in (("", "value"), (", low", "low"), (", high", "high"))
                },
            }
            for effect in self.found.effects
        ]

    def plot(self) -> Picture:
        """The share that is right over strength, a panel for each kind and a line for each emotion."""
        return Picture.of(report.figure(self.found))


def measure_side_effects(
    circuit: Circuit | str | Path | None = None,
    model: str | Path | Server | None = None,
    *,
    out: str | Path,
    data: str | Path | None = None,
    strengths: Sequence[float] = (0.5, 1.0),
    limit: int | None = None,
    settings: RunSettings = RunSettings(),
) -> SideEffectsRun:
    """Asks sums, facts, formats, harmful and harmless requests, false and true claims, plain and in each emotion at
    each strength, and checks the replies by rule.

    circuit, model: as of `evaluate`. out: folder of the results, from which an interrupted run resumes.
    data: JSON lines {id, kind, user, check}; None for the packaged items. limit: only the first items of each kind.
    strengths: 1.0 is the recommended one. settings: of which a style and a seed play no part.
    Raises: EmovllmError.
    """
    refuse_without_circuit(circuit, model)
    out = Path(out)
    found = measure(
        replace(where_of(model, settings), circuit=place_of(circuit, model, out)),
        load_items(data, limit),
        tuple(strengths),
        out,
        max_tokens=settings.max_tokens,
        fresh=settings.fresh,
    )
    report.write_report(found, out)
    return SideEffectsRun(found, out)
