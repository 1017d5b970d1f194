"""`emovllm probe persist`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options, published_command
from emovllm_offline.commands.shared import MODEL, PROBE
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.reading.settings import Persisting


@dataclass(frozen=True)
class ProbePersistOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    probe: Annotated[Path, PROBE]
    data: Annotated[
        str,
        Parameter(
            help="the messages: texts as for probe train, or sev-test, sev, sev-small, which have no emotion of their "
            "own",
            metavar="FILE",
        ),
    ]
    circuit: Annotated[
        str | None,
        Parameter(
            help="a circuit's folder, or a Hugging Face repository id (default: the default model's, of others none)",
            metavar="DIR",
        ),
    ] = None
    out: Annotated[Path, Parameter(help="folder for persist.json and the report", metavar="DIR")]
    persisting: Annotated[Persisting, FLAT] = field(default_factory=Persisting)
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.persisting.work or work_folder(self.out)


def main(options: Annotated[ProbePersistOptions, FLAT]) -> None:
    """For how many tokens can the emotion that a reply opens with be read in the states that write it? Of plain replies
    it is that of the user's message; with a circuit, the one that is on at the prompt's last token, over the reply, or
    over its first tokens alone. Told beside its control, with a half-life. Writes persist.json, report.md and
    report.html. Interrupted, the same command goes on.
    """
    from emovllm_offline.reading.persist import Settings, run
    from emovllm_offline.reading.persist_report import summary, write_report

    settings = Settings(options.persisting, options.loading, published_command("probe persist", options))
    lasted = run(options.model, options.probe, options.data, options.circuit, options.out, settings)
    write_report(lasted, options.out)
    print(f"{options.out}: {summary(lasted)}")
