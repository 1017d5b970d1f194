"""A build and its folder: what the stages left, and how they run commands.

Whatever is decided is decided by these files, and so the same when a build is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emovllm.circuit import Circuit
from emovllm.circuit_files import JSON_NAME, load_circuit
from emovllm.options import Options, published_command
from emovllm.probe import NAME as PROBE_NAME
from emovllm_offline.building.costs import tried_styles
from emovllm_offline.building.inputs import Inputs
from emovllm_offline.building.obeyed import Obedience, best, obedience
from emovllm_offline.building.sizes import Counts, Sizes
from emovllm_offline.commands import calibrate, discover, elicit, evaluate, own_replies, probe_train, refine
from emovllm_offline.discovery.elicit import REPLIES, load_replies
from emovllm_offline.discovery.survival import Reply

# By what share the held-out loss has to fall for a refinement to be taken.
PAYS = 0.01
COMMANDS: dict[str, Callable[[Any], Any]] = {
    "elicit": elicit.main,
    "discover": discover.main,
    "refine": refine.main,
    "own-replies": own_replies.main,
    "probe train": probe_train.main,
    "calibrate": calibrate.main,
    "evaluate": evaluate.main,
}


@dataclass
class Build:
    """inputs, counts, sizes: what it is made from. place: its work folder. ran, notes: the commands of the stage that
    runs, and what it found, in words."""

    inputs: Inputs
    place: Path
    counts: Counts
    sizes: Sizes
    ran: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, name: str, options: Options) -> Any:
        """A command, in this process. Raises: as it does."""
        self.ran.append(published_command(name, options))
        return COMMANDS[name](options)

    def tried(self) -> list[Obedience]:
        """How the model replied in each style that was tried."""
        found = []
        for name in tried_styles(self.sizes, self.counts):
            if (path := self.place / "elicit" / name / REPLIES).exists():
                found.append(obedience(name, load_replies(path), self.inputs.emotions))
        return found

    def obeyed(self) -> Obedience | None:
        """The style that is obeyed best, where any emotion is."""
        chosen = best(self.tried())
        return chosen if chosen is not None and chosen.obeyed else None

    def prompted(self) -> Path | None:
        """What the model replied in that style, to the most messages that it was asked."""
        chosen = self.obeyed()
        if chosen is None:
            return None
        further = self.place / "prompt" / REPLIES
        return further.parent if further.exists() else self.place / "elicit" / chosen.style

    def replies(self) -> list[Reply]:
        """Those of `prompted`."""
        place = self.prompted()
        return [] if place is None else load_replies(place / REPLIES)

    def asking(self) -> str:
        """How a command calls the style that calibration and evaluation ask for emotions in."""
        chosen = best(self.tried())
        return self.inputs.sources[chosen.style if chosen else self.inputs.forced.name]

    def refinement(self, circuit: Path) -> tuple[float, float] | None:
        """The held-out loss before and after, in nats per token; None where there is no such circuit."""
        found = circuit_in(circuit)
        if found is None:
            return None
        means = [sum(row.values()) / len(row) for row in found.spec.provenance["refinements"][-1]["held-out loss"]]
        return means[0], min(means)

    def pays(self, circuit: Path) -> bool:
        """Whether a refinement lowered the loss of what it did not learn from."""
        losses = self.refinement(circuit)
        return losses is not None and losses[1] < (1 - PAYS) * losses[0]

    @property
    def refined(self) -> Path:
        return self.place / "refine" / "circuit"

    @property
    def found(self) -> Path:
        """The circuit to calibrate: refined where that pays."""
        return self.refined if self.pays(self.refined) else self.place / "discover" / "circuit"

    @property
    def served(self) -> Path:
        """The circuit that is evaluated and written: that of another round where it is calibrated as accurate."""
        first, second = self.place / "calibrate" / "circuit", self.place / "again" / "circuit"
        return second if worth(second) >= worth(first) and worth(second) > 0 else first

    @property
    def probe(self) -> Path | None:
        trained = self.place / "probe" / "trained"
        return trained if (trained / PROBE_NAME).exists() else None


def circuit_in(folder: Path) -> Circuit | None:
    return load_circuit(folder) if (folder / JSON_NAME).exists() else None


def worth(folder: Path) -> float:
    """The accuracy of a calibrated circuit's emotions at their strengths, on average; 0 where it is none."""
    circuit = circuit_in(folder)
    if circuit is None or "calibration" not in circuit.spec.provenance:
        return 0.0
    return sum(emotion.scores.get("accuracy", 0.0) for emotion in circuit.spec.emotions) / len(circuit.spec.emotions)
