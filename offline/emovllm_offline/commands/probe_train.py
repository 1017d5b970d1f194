"""`emovllm probe train`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, Options, published_command
from emovllm_offline.commands.shared import MODEL
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.reading.settings import Fitting, Reading, Work

TEXTS = "labelled texts: JSON lines {text, label, group?}, a .tsv as GoEmotions has, or what `elicit` wrote"


@dataclass(frozen=True)
class ProbeTrainOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    data: Annotated[Path, Parameter(help=TEXTS, metavar="FILE")]
    dev: Annotated[
        Path | None, Parameter(help="texts to choose layer and penalties by (default: held out)", metavar="FILE")
    ] = None
    test: Annotated[Path | None, Parameter(help="texts to measure on (default: held out)", metavar="FILE")] = None
    out: Annotated[Path, Parameter(help="folder for the probe and its report", metavar="DIR")]
    into: Annotated[
        Path | None, Parameter(help="a circuit of the same model, whose folder gets the probe too", metavar="CIRCUIT")
    ] = None
    labels: Annotated[
        tuple[str, ...],
        COMMAS,
        QUIET,
        Parameter(help="use only texts with these labels (default: all)", metavar="NAME,..."),
    ] = ()
    limit: Annotated[
        int | None, Gt(0), Parameter(help="of each file about N texts, with each label's share as it is", metavar="N")
    ] = None
    reading: Annotated[Reading, FLAT] = field(default_factory=Reading)
    fitting: Annotated[Fitting, FLAT] = field(default_factory=Fitting)
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    working: Annotated[Work, FLAT] = field(default_factory=Work)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.working.work or work_folder(self.out)


def main(options: Annotated[ProbeTrainOptions, FLAT]) -> None:
    """Train linear probes of a model's hidden states on labelled texts, one for each layer, and measure how well they
    tell the labels, beside the same fit to shuffled labels. Writes probe.safetensors, results.json, report.md and
    report.html. Interrupted, the same command goes on.

    Texts with several labels are left out, and counted.
    """
    from emovllm_offline.reading.report import summary
    from emovllm_offline.reading.train import ProbeData, Settings, run

    trained = run(
        options.model,
        ProbeData(options.data, options.dev, options.test, options.labels, options.limit),
        options.out,
        Settings(
            options.reading,
            options.fitting,
            options.loading,
            work=options.resumes_from,
            fresh=options.working.fresh,
            command=published_command("probe train", options),
        ),
        options.into,
    )
    print(f"{options.out}: {summary(trained.results)}")
