"""`emovllm import-published`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import FLAT, Options


@dataclass(frozen=True)
class ImportOptions(Options):
    checkout: Annotated[Path, Parameter(help="their repository, or the folder of one run in its outputs/")]
    _: KW_ONLY
    out: Annotated[Path, Parameter(help="folder to write the circuit to", metavar="DIR")]
    model: Annotated[
        str | None,
        Parameter(
            help="folder or Hugging Face id with the weights, by which the circuit will know its model (default: "
            "meta-llama/Llama-3.2-3B-Instruct)"
        ),
    ] = None


def main(options: Annotated[ImportOptions, FLAT]) -> None:
    """Turn the artefacts that the paper's authors published (a checkout of their repository) into a circuit for
    Llama-3.2-3B-Instruct that `emovllm serve` can use. Whatever is missing there is an error that names the file.
    """
    from emovllm_offline.discovery.published import import_published

    circuit = import_published(options.checkout, options.out, options.model)
    units = sum(map(len, circuit.neurons.values())), sum(map(len, circuit.heads.values()))
    print(f"{options.out}: {', '.join(circuit.names)}; {units[0]} neurons and {units[1]} heads in all")
    if not circuit.directions:
        print("the checkout has no emotion directions: the circuit has none for the steering baseline")
