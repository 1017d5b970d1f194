"""What discovery measures about a model before any unit is chosen, for assembly, validation and report."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from emovllm.errors import FindingsError
from emovllm.files import write_atomically
from emovllm_offline.discovery.parameters import Extraction

if TYPE_CHECKING:
    from emovllm_offline.model.decoder import Decoder  # whoever only reads findings need not wait for PyTorch

FILE = "findings.safetensors"


class Routed(NamedTuple):
    """Findings of routed experts: see there."""

    contribution: np.ndarray
    delta: np.ndarray
    routing: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """E emotions, L layers, d hidden, m intermediate, H heads; sublayers in the order A0, M0, A1, M1, ...; of routed
    experts, where they were asked for, C in a layer with n neurons each, expert by expert."""

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
    through_norms: bool = True  # whether neurons and heads were measured through norms of a sublayer's output
    extract: Extraction = "generation"
    experts: np.ndarray | None = None  # mean contribution [E, L, C * n]
    experts_delta: np.ndarray | None = None  # of routing weight times activation [E, L, C * n], not normalised
    routing: np.ndarray | None = None  # mean routing weight [E, L, C]
    importance_by_alpha: np.ndarray | None = None  # for each size of the push [E, 2L, A]; not of the gradient's
    alphas: np.ndarray | None = None  # [A], in units of sigma

    def save(self, folder: str | Path) -> None:
        """Writes `findings.safetensors`, in the types that were measured; never half of it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"emotions": self.emotions, "groups": self.groups, "through_norms": self.through_norms}
        if self.extract != "generation":
            about["extract"] = self.extract
        arrays = self.arrays()
        data = safetensors.numpy.save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            # One entry: safetensors writes several in no fixed order.
            metadata={"about": json.dumps(about)},
        )
        write_atomically(folder / FILE, data)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that there are, by name, in the order of the fields."""
        of_fields = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in of_fields.items() if isinstance(array, np.ndarray)}

    @classmethod
    def load(cls, folder: str | Path) -> Findings:
        """Raises: FindingsError."""
        path = Path(folder) / FILE
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return cls(
                tuple(about["emotions"]),
                int(about["groups"]),
                **arrays,
                through_norms=bool(about.get("through_norms", False)),
                extract=about.get("extract", "generation"),
            )
        except FileNotFoundError:
            raise FindingsError(f"{path}: missing; `emovllm discover` writes it") from None
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise FindingsError(f"{path}: {error}") from None

    @property
    def routed(self) -> Routed | None:
        """What was measured of routed experts, where they were asked for."""
        if self.experts is None or self.experts_delta is None or self.routing is None:
            return None
        return Routed(self.experts, self.experts_delta, self.routing)

    def require_extraction(self, extract: Extraction) -> None:
        """Raises: FindingsError where they are of the other extraction."""
        if self.extract != extract:
            raise FindingsError(
                f"the findings are of --extract {self.extract}, not {extract}: give the same again, or measure anew by "
                "`emovllm discover --fresh`"
            )

    def require_experts(self, decoder: Decoder) -> None:
        """Raises: FindingsError where routed experts are asked for, and were not measured."""
        if self.routed is None and any(layer.experts for layer in decoder.layers):
            raise FindingsError(
                "the findings are without routed experts; measure anew by `emovllm discover --fresh --experts`"
            )

    def require_norms(self, decoder: Decoder) -> None:
        """Raises: FindingsError where the model norms its sublayers' output, and neurons and heads leave that out."""
        if not self.through_norms and any(layer.attention_norm or layer.mlp_norm for layer in decoder.layers):
            raise FindingsError(
                "the findings are of an older version, which ranked neurons and heads without the norms that this "
                "model applies to its sublayers' output; measure anew by `emovllm discover --fresh`"
            )
