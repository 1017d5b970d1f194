"""`emovllm discover`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options, published_command
from emovllm_offline.commands.shared import MODEL
from emovllm_offline.discovery.parameters import Parameters, Settings


@dataclass(frozen=True)
class DiscoverOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    out: Annotated[Path, Parameter(help="folder to write the circuit to", metavar="DIR")]
    settings: Annotated[Settings, FLAT] = field(default_factory=Settings)
    parameters: Annotated[Parameters, FLAT] = field(default_factory=Parameters)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.settings.measurement.work or work_folder(self.out)


def main(options: Annotated[DiscoverOptions, FLAT]) -> None:
    """Find the neurons and heads with which a model expresses each emotion, and write them as a circuit that
    `emovllm serve` can use.
    """
    from emovllm_offline.discovery import discover

    command = published_command("discover", options)
    circuit = discover.run(options.model, options.out, options.settings, options.parameters, command=command)
    if circuit is None:
        print(f"{options.resumes_from}: {options.settings.stage} done")
        return
    neurons = sum(map(len, circuit.neurons.values())) // len(circuit.names)
    heads = sum(map(len, circuit.heads.values())) // len(circuit.names)
    experts = sum(map(len, circuit.experts.values())) // len(circuit.names)
    routed = f", and {experts} neurons of routed experts as constant vectors" if circuit.experts else ""
    print(f"{options.out}: {', '.join(circuit.names)}; about {neurons} neurons and {heads} heads each{routed}")
