"""`emovllm side-effects`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import FLAT, QUIET, STRENGTHS, Options, published_command
from emovllm_offline.commands.evaluate import arguments


@dataclass(frozen=True)
class SideEffectsOptions(Options):
    model: Annotated[
        str | None,
        Parameter(help="folder or Hugging Face id (default: the default model); its name at --base-url"),
    ] = None
    _: KW_ONLY
    circuit: Annotated[
        str | None, Parameter(help="a folder, or a Hugging Face repository id; its name at --base-url", metavar="DIR")
    ] = None
    data: Annotated[
        Path | None,
        Parameter(help="JSON lines {id, kind, user, check} (default: the packaged items)", metavar="FILE"),
    ] = None
    limit: Annotated[int | None, Gt(0), Parameter(help="of each kind, the first N items", metavar="N")] = None
    strengths: Annotated[tuple[float, ...], STRENGTHS, Parameter(help="1.0 is the recommended strength")] = (0.5, 1.0)
    max_tokens: Annotated[int, Gt(0), Parameter(help="of a reply", metavar="N")] = 100
    concurrency: Annotated[int, Gt(0), Parameter(help="requests at a time", metavar="N")] = 64
    base_url: Annotated[
        str | None, Parameter(help="a running emovllm server, such as http://localhost:8000/v1", metavar="URL")
    ] = None
    api_key_variable: Annotated[str, Parameter(help="environment variable of that server's key", metavar="NAME")] = (
        "OPENAI_API_KEY"
    )
    engine_args: Annotated[
        str,
        QUIET,
        Parameter(
            help="further arguments of vllm serve, in one string, for the local engine",
            metavar="ARGS",
            allow_leading_hyphen=True,
        ),
    ] = ""
    out: Annotated[Path, Parameter(metavar="DIR", help="folder of the results")] = Path("emovllm-side-effects")
    fresh: Annotated[bool, QUIET, Parameter(help="forget what --out holds")] = False

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
            options.concurrency,
            arguments(options.engine_args),
        ),
        load_items(options.data, options.limit),
        options.strengths,
        options.out,
        max_tokens=options.max_tokens,
        fresh=options.fresh,
        command=published_command("side-effects", options),
    )
    write_report(found, options.out)
    overview(found).print()
    print(f"{options.out}: {summary(found)}")
