"""`emovllm data make`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, Options


@dataclass(frozen=True)
class DataMakeOptions(Options):
    model: Annotated[str, Parameter(help="the writing model's name at its endpoint")]
    _: KW_ONLY
    themes: Annotated[
        tuple[str, ...], COMMAS, Parameter(help="what the scenarios are of, a few words each", metavar="THEME,...")
    ]
    out: Annotated[Path, Parameter(help="the file to write, as `discover --data` reads it", metavar="FILE")]
    scenarios: Annotated[int, Gt(0), Parameter(help="of each theme", metavar="N")] = 20
    about: Annotated[
        str, Parameter(help="who the users are and what they write about, in a sentence or two", metavar="TEXT")
    ] = ""
    base_url: Annotated[
        str | None, Parameter(help="the OpenAI-compatible endpoint (default: OpenAI's)", metavar="URL")
    ] = None
    attempts: Annotated[
        int, Gt(0), Parameter(help="at a scenario, each told what is wrong with the one before", metavar="N")
    ] = 5
    temperature: Annotated[float, Parameter(help="of the model", metavar="X")] = 1.0
    concurrency: Annotated[int, Gt(0), Parameter(help="themes at a time", metavar="N")] = 8

    @property
    def resumes_from(self) -> Path:
        return self.out


def main(options: Annotated[DataMakeOptions, FLAT]) -> int:
    """Write scenario-events of your own domain in the form of SEV: a scenario in the first person with a positive, a
    neutral and a negative event, which are small variations of one another and name no emotion. Each is held to what
    the packaged data is held to, and written again, up to `--attempts`, where it falls short; what is sound is kept at
    once. The same command goes on, or adds themes and scenarios.

    The API key is read from the environment variable OPENAI_API_KEY and sent to the endpoint that you name. A checker
    knows lengths, words and repetitions: read what was written before you use it.
    """
    from emovllm_offline.discovery.scenarios import Domain, make
    from emovllm_offline.endpoint.client import Endpoint

    endpoint = Endpoint(options.model, options.base_url, concurrency=options.concurrency)
    domain = Domain(options.themes, options.scenarios, options.about, options.attempts, options.temperature)
    made = make(endpoint, domain, options.out)
    for theme, complaints in made.failed.items():
        print(f"{theme}: given up after {options.attempts} attempts at a scenario: {'; '.join(complaints)}")
    print(f"{options.out}: {made.sound} of {domain.scenarios * len(domain.themes)} scenarios, each with three events")
    return int(bool(made.failed))
