"""`emovllm own-replies`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options
from emovllm_offline.commands.shared import MODEL
from emovllm_offline.refinement.settings import OwnRepliesSettings, Sampling


@dataclass(frozen=True)
class OwnRepliesOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    circuit: Annotated[str, Parameter(help="the circuit to reply under", metavar="DIR")]
    out: Annotated[Path, Parameter(help="JSON lines to write", metavar="FILE")]
    sampling: Annotated[Sampling, FLAT] = field(default_factory=Sampling)
    settings: Annotated[OwnRepliesSettings, FLAT] = field(default_factory=OwnRepliesSettings)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.settings.work or work_folder(self.out)


def main(options: Annotated[OwnRepliesOptions, FLAT]) -> None:
    """Let the model reply under a circuit, keep the replies that show the emotion and that the plain model finds
    likeliest when asked for it, and write them for `emovllm refine --replies`: a circuit that learns from them writes
    more as its model does. Interrupted, the same command goes on.
    """
    from emovllm_offline.refinement import own_replies

    counts = own_replies.run(options.model, options.circuit, options.out, options.settings, options.sampling)
    print(f"{options.out}: its own are {', '.join(f'{number} of {name}' for name, number in counts.items())}")
