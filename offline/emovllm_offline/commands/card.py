"""`emovllm card`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.errors import OptionError
from emovllm.options import FLAT, QUIET, Options


@dataclass(frozen=True)
class CardOptions(Options):
    circuit: Annotated[Path, Parameter(help="the circuit's folder, to which the card goes")]
    _: KW_ONLY
    evaluation: Annotated[
        Path | None, Parameter(help="what `emovllm evaluate` left, of this circuit", metavar="DIR")
    ] = None
    side_effects: Annotated[
        Path | None, Parameter(help="what `emovllm side-effects` left, of this circuit", metavar="DIR")
    ] = None
    repository: Annotated[
        str | None, Parameter(help="where the circuit will be on the hub (default: DIR)", metavar="OWNER/NAME")
    ] = None
    replace: Annotated[bool, QUIET, Parameter(help="write over the card that is there")] = False


def main(options: Annotated[CardOptions, FLAT]) -> None:
    """Write a circuit's model card, README.md in its folder: how it was made, how well it steers, what that costs, and
    what was not measured. `emovllm push` takes it along.
    """
    from emovllm.card import NAME
    from emovllm.circuit_files import load_circuit
    from emovllm.files import write_atomically
    from emovllm.probe import NAME as PROBE_NAME
    from emovllm_offline.evaluation.card import measured_card
    from emovllm_offline.evaluation.results import Summary
    from emovllm_offline.evaluation.side_effects import SideEffects

    out = options.circuit / NAME
    if out.exists() and not options.replace:
        raise OptionError(f"{out} is there already: give --replace to write over it")
    circuit = load_circuit(options.circuit)
    card = measured_card(
        circuit,
        options.repository or "DIR",
        None if options.evaluation is None else Summary.load(options.evaluation),
        None if options.side_effects is None else SideEffects.load(options.side_effects),
        probe=(options.circuit / PROBE_NAME).exists(),
    )
    write_atomically(out, card.encode())
    print(out)
