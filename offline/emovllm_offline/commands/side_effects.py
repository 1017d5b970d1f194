"""`emovllm side-effects`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import FLAT, STRENGTHS, Options, published_command
from emovllm_offline.commands.shared import (
    BASE_URL,
    KEY_VARIABLE,
    SERVED_CIRCUIT,
    SERVED_MODEL,
    ReplyOptions,
    arguments,
)


@dataclass(frozen=True)
class SideEffectsOptions(Options):
    model: Annotated[str | None, SERVED_MODEL] = None
    _: KW_ONLY
    circuit: Annotated[str | None, SERVED_CIRCUIT] = None
    data: Annotated[
        Path | None,
        Parameter(help="JSON lines {id, kind, user, check} (default: the packaged items)", metavar="FILE"),
    ] = None
    limit: Annotated[int | None, Gt(0), Parameter(help="of each kind, the first N items", metavar="N")] = None
    strengths: Annotated[tuple[float, ...], STRENGTHS, Parameter(help="1.0 is the recommended strength")] = (0.5, 1.0)
    common: Annotated[ReplyOptions, FLAT] = field(default_factory=ReplyOptions)
    base_url: Annotated[str | None, BASE_URL] = None
    api_key_variable: Annotated[str, KEY_VARIABLE] = "OPENAI_API_KEY"
    out: Annotated[Path, Parameter(metavar="DIR", help="folder of the results")] = Path("emovllm-side-effects")

    @property
    def resumes_from(self) -> Path:
        return self.out


def main(options: Annotated[SideEffectsOptions, FLAT] = SideEffectsOptions()) -> None:
    """What does an emotion cost beside its tone? Asks sums, facts, formats, harmful and harmless requests, false and
    true claims, plain and in each emotion at each strength, and checks the replies by rule, in pairs with the plain
    ones. Writes side-effects.json, report.md and report.html. Interrupted, the same command goes on.
    """
    from emovllm_offline.data.side_effects import load_items
    from emovllm_offline.evaluation.side_effects import measure
    from emovllm_offline.evaluation.side_effects_report import overview, summary, write_report
    from emovllm_offline.evaluation.target import Where

    found = measure(
        Where(
            options.model,
            options.circuit,
            options.base_url,
            options.api_key_variable,
            options.common.concurrency,
            arguments(options.common.engine_args),
        ),
        load_items(options.data, options.limit),
        options.strengths,
        options.out,
        max_tokens=options.common.max_tokens,
        fresh=options.common.fresh,
        command=published_command("side-effects", options),
    )
    write_report(found, options.out)
    overview(found).print()
    print(f"{options.out}: {summary(found)}")
