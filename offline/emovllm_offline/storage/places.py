"""Where the package's own files lie; and, unless the user says another place, what belongs to a circuit but not into
it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_PACKAGE = Path(str(resources.files("emovllm_offline")))
# Data sets and prompts, and what judges are made of and measured on.
DATA = _PACKAGE / "data" / "files"
JUDGES = _PACKAGE / "judges" / "data"


def work_folder(circuit: str | Path) -> Path:
    """Of discovery, refinement, validation and report: beside the circuit."""
    circuit = Path(circuit).resolve()
    return circuit.with_name(f"{circuit.name}.work")


def calibration_folder(circuit: str | Path) -> Path:
    """Of `emovllm calibrate`."""
    return work_folder(circuit) / "calibration"
