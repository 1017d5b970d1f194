"""`emovllm refine`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options, published_command
from emovllm_offline.commands.shared import MODEL
from emovllm_offline.refinement.settings import RefineSettings, Training


@dataclass(frozen=True)
class RefineOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    circuit: Annotated[str, Parameter(help="the circuit to start from, as `emovllm discover` wrote it", metavar="DIR")]
    out: Annotated[Path, Parameter(help="folder to write the refined circuit to", metavar="DIR")]
    training: Annotated[Training, FLAT] = field(default_factory=Training)
    settings: Annotated[RefineSettings, FLAT] = field(default_factory=RefineSettings)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.settings.work or work_folder(self.out)


def main(options: Annotated[RefineOptions, FLAT]) -> None:
    """Fit a circuit's difference vectors to emotional replies, by gradient descent, and write the refined circuit: the
    same neurons and heads, the same model. This goes beyond the paper, and the circuit's provenance says so.
    Interrupted, the same command goes on.
    """
    from emovllm_offline.refinement import refine

    circuit = refine.run(
        options.model,
        options.circuit,
        options.out,
        options.settings,
        options.training,
        command=published_command("refine", options),
    )
    history = circuit.spec.provenance["refinements"][-1]["held-out loss"]
    means = [sum(row.values()) / len(row) for row in history]
    print(
        f"{options.out}: held-out replies at {means[0]:.2f} nats per token before, {min(means):.2f} after; "
        "`emovllm calibrate` finds its strengths"
    )
