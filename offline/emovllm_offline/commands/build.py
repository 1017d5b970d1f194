"""`emovllm build`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options, published_command
from emovllm_offline.building.settings import BuildSettings
from emovllm_offline.commands.shared import MODEL


@dataclass(frozen=True)
class BuildOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    out: Annotated[Path, Parameter(help="folder for the circuit, its card and its page", metavar="DIR")]
    settings: Annotated[BuildSettings, FLAT] = field(default_factory=BuildSettings)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.settings.work or work_folder(self.out)


def main(options: Annotated[BuildOptions, FLAT]) -> int:
    """Build a circuit that serves, in one go: asks the model in several styles and takes what it obeys, discovers,
    refines where that pays, trains a probe, finds the strengths, and measures on messages that it has not seen. Writes
    the circuit with a card (README.md) and one page (page.html): how well each emotion shows, what it costs, and what
    to do where one fails. A plan with times is told before. Interrupted, the same command goes on; each stage is a
    command of its own. Ends with 1 where an emotion does not show beyond chance.
    """
    from emovllm_offline.building import run

    found = run.run(options.model, options.out, options.settings, command=published_command("build", options))
    return 1 if found is not None and not all(one.shows for one in found) else 0
