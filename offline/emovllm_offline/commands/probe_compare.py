"""`emovllm probe compare`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options, published_command
from emovllm_offline.commands.probe_train import TEXTS
from emovllm_offline.commands.shared import MODEL, PROBE
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.reading.settings import Measuring


@dataclass(frozen=True)
class ProbeCompareOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    probe: Annotated[Path, PROBE]
    data: Annotated[Path, Parameter(help=TEXTS, metavar="FILE")]
    out: Annotated[Path, Parameter(help="folder for compare.json and the report", metavar="DIR")]
    measuring: Annotated[Measuring, FLAT] = field(default_factory=Measuring)
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.measuring.work or work_folder(self.out)


def main(options: Annotated[ProbeCompareOptions, FLAT]) -> None:
    """Does a probe tell emotions better than the model that it reads? The same texts are classified by the probe, and
    by the model itself, asked which label fits, zero-shot, by the likelihood of each. Writes compare.json, report.md
    and report.html. Interrupted, the same command goes on.

    Texts with several labels, or with another than the probe's, are left out, and counted.
    """
    from emovllm_offline.reading.compare import Settings, run
    from emovllm_offline.reading.compare_report import summary, write_report
    from emovllm_offline.reading.zero_shot import question_table

    settings = Settings(options.measuring, options.loading, published_command("probe compare", options))
    compared, reader = run(options.model, options.probe, options.data, options.out, settings)
    write_report(compared, question_table(reader.labels, reader.loaded.tokenizer), options.out)
    print(f"{options.out}: {summary(compared)}")
