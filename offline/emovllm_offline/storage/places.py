"""Where what belongs to a circuit but not into it lies, unless the user says another place."""

from __future__ import annotations

from pathlib import Path


def work_folder(circuit: str | Path) -> Path:
    """Of discovery, refinement, validation and report: beside the circuit."""
    circuit = Path(circuit).resolve()
    return circuit.with_name(f"{circuit.name}.work")


def calibration_folder(circuit: str | Path) -> Path:
    """Of `emovllm calibrate`."""
    return work_folder(circuit) / "calibration"
