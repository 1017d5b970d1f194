"""What discovery measures about a model before any unit is chosen, for assembly, validation and report."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from emovllm.errors import FindingsError
from emovllm.files import write_atomically

FILE = "findings.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """E emotions, L layers, d hidden, m intermediate, H heads; sublayers in the order A0, M0, A1, M1, ..."""

    emotions: tuple[str, ...]
    groups: int
    attn_directions: np.ndarray  # [E, L, d], unit norm
    mlp_directions: np.ndarray  # [E, L, d], unit norm, before the final norm in the last layer too
    neurons: np.ndarray  # mean contribution [E, L, m]
    heads: np.ndarray  # importance [E, L, H]
    mlp_delta: np.ndarray  # [E, L, m], not normalised
    attn_delta: np.ndarray  # [E, L, H * head_dim], not normalised
    sigma: np.ndarray  # [2L]
    importance: np.ndarray  # [E, 2L]
    similarity: np.ndarray  # [2L, 2L]

    def save(self, folder: str | Path) -> None:
        """Writes `findings.safetensors`, in the types that were measured; never half of it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("emotions", "groups")}
        data = safetensors.numpy.save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            # One entry: safetensors writes several in no fixed order.
            metadata={"about": json.dumps({"emotions": self.emotions, "groups": self.groups})},
        )
        write_atomically(folder / FILE, data)

    @classmethod
    def load(cls, folder: str | Path) -> Findings:
        """Raises: FindingsError."""
        path = Path(folder) / FILE
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return cls(emotions=tuple(about["emotions"]), groups=int(about["groups"]), **arrays)
        except FileNotFoundError:
            raise FindingsError(f"{path}: missing; `emovllm discover` writes it") from None
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise FindingsError(f"{path}: {error}") from None
