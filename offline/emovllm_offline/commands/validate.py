"""`emovllm validate`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options
from emovllm_offline.commands.shared import MODEL
from emovllm_offline.validation.plan import Settings


@dataclass(frozen=True)
class ValidateOptions(Options):
    circuit: Annotated[Path, Parameter(help="the circuit's folder")]
    _: KW_ONLY
    model: Annotated[str, MODEL] = "default"
    work: Annotated[
        Path | None,
        Parameter(
            help="folder of findings.safetensors, and for validation.json (default: CIRCUIT.work)", metavar="DIR"
        ),
    ] = None
    settings: Annotated[Settings, FLAT] = field(default_factory=Settings)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.work or work_folder(self.circuit)


def main(options: Annotated[ValidateOptions, FLAT]) -> None:
    """Test a circuit's neurons and heads on a model: how far an emotion's score falls when the top k of every layer are
    zeroed, and how far it rises when their difference vectors are added to a neutral prompt, beside random units.
    """
    from emovllm_offline.validation import validate
    from emovllm_offline.validation.results import FILE

    work = options.resumes_from
    result = validate.run(options.model, work, options.settings, options.circuit)
    where = "" if options.work is None else f" --work {work}"
    print(
        f"{work / FILE}: {result.scenarios} scenarios; best probe F1 {max(result.macro_f1()):.3f}; "
        f"`emovllm report {options.circuit}{where}` draws it"
    )
