"""`emovllm probe prompts`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, REPEATED, Options, published_command
from emovllm_offline.commands.shared import MODEL, PROBE
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.reading.in_chat import At
from emovllm_offline.reading.settings import Measuring


@dataclass(frozen=True)
class ProbePromptsOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    probe: Annotated[Path, PROBE]
    data: Annotated[
        str, Parameter(help="the messages: texts as for probe train, or sev-test, sev, sev-small", metavar="FILE")
    ]
    system: Annotated[
        tuple[str, ...],
        REPEATED,
        Parameter(
            help="a JSON file {name: prompt}, or NAME=PROMPT; the name is the label that it tells of; repeatable "
            "(default: packaged ones)",
            metavar="FILE|NAME=PROMPT",
            show_default=False,
        ),
    ] = ()
    at: Annotated[
        At | None,
        Parameter(help="what is read: where the reply begins, or the message's own end (default: as the probe)"),
    ] = None
    out: Annotated[Path, Parameter(help="folder for prompts.json and the report", metavar="DIR")]
    measuring: Annotated[Measuring, FLAT] = field(default_factory=Measuring)
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.measuring.work or work_folder(self.out)


def main(options: Annotated[ProbePromptsOptions, FLAT]) -> None:
    """How far does a system prompt that tells the model how it feels move what a probe reads? The same messages are
    read below several system prompts and below none, and the change of each label's logit is told layer by layer,
    message by message. Writes prompts.json, report.md and report.html. Interrupted, the same command goes on.
    """
    from emovllm_offline.reading.shift import Settings, run
    from emovllm_offline.reading.shift_report import summary, write_report

    settings = Settings(options.at, options.measuring, options.loading, published_command("probe prompts", options))
    shifts = run(options.model, options.probe, options.data, options.system, options.out, settings)
    write_report(shifts, options.out)
    print(f"{options.out}: {summary(shifts)}")
