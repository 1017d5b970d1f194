"""What validation found: curves of the sweeps, principal components, the probe's F1; kept as `validation.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.circuit import Circuit
from emovllm.errors import ResultsError
from emovllm.files import write_atomically
from emovllm_offline.discovery.findings import Findings

FILE = "validation.json"
FORMAT = 2
# The neutral prompt as it is; the same with the circuit at lambda 1; the prompt that asks for the emotion.
CONDITIONS = ("neutral", "circuit", "asked")
# The first lacks what is empty by default below, and has the components of six layers alone.
READABLE = (1, FORMAT)


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean change of an emotion's score against k = 0, with 95% confidence intervals, for each k.

    The intervals are Student's t: over scenarios (the three events of one are averaged first), and for the random
    control over seeds.
    """

    mode: str  # ablation, enhancement
    kind: str  # neurons, heads
    site: str  # attn, mlp: which residual is projected
    emotion: str
    k: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    random_mean: list[float]
    random_low: list[float]
    random_high: list[float]

    def separated(self) -> list[int]:
        """The k at which the interval lies wholly on the expected side of the random control's."""
        if self.mode == "ablation":
            pairs = zip(self.k, self.high, self.random_low, strict=True)
        else:
            pairs = zip(self.k, self.random_high, self.low, strict=True)
        return [k for k, below, above in pairs if below < above]


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of the elicitation prompts' states after one layer's MLP, at the positions of discovery.

    explained: the share of the variance on each of the first three, from 0 to 1. points: on the first two, in units of
    the residual, [E][items][2] (files of the first format have three).
    """

    layer: int
    explained: list[float]
    points: list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """States after each layer's MLP at a prompt's last token, before any reply, in one of CONDITIONS.

    mean, low, high: the projection on the layer's direction of the emotion, in units of the residual, with its 95%
    interval over scenarios (Student's t), [L]. path: the mean displacement from the state of the neutral prompt in the
    plane of the directions' first two principal components, over the layer's RMS of the residual, [L][2].
    """

    emotion: str
    condition: str
    mean: list[float]
    low: list[float]
    high: list[float]
    path: list[list[float]]


@dataclass(frozen=True, slots=True)
class Validation:
    """All of `validation.json`.

    elicited: per site, mean score [E prompts][E directions] of the elicitation prompts; neutral: per site, mean score
    [E] of the neutral prompts. components: of every layer. pure: the same of what is left of the states when the mean
    over the emotions of each item is taken off. explained: [L][3]. f1: the probe's, [L][E]. trajectories: by emotion
    and condition; none where no circuit was at hand.
    """

    inputs: dict[str, Any]
    emotions: list[str]
    items: int
    scenarios: int
    elicited: dict[str, list[list[float]]]
    neutral: dict[str, list[float]]
    curves: list[Curve]
    components: list[Components]
    explained: list[list[float]]
    f1: list[list[float]]
    pure: list[Components] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)

    def signal(self, site: str) -> list[float]:
        """Per emotion, how much more its own elicitation prompts score than those of all emotions on average: the
        scale on which a change is large or small."""
        rows = self.elicited[site]
        return [row[e] - sum(other[e] for other in rows) / len(rows) for e, row in enumerate(rows)]

    def macro_f1(self) -> list[float]:
        return [sum(of_layer) / len(of_layer) for of_layer in self.f1]

    def left_out(self) -> dict[str, list[int]]:
        """By kind: the k of the plan that no layer has as many units for. The first format lowered them."""
        if "format version" not in self.inputs:
            return {}
        plan = self.inputs.get("plan", {})
        most = {curve.kind: curve.k[-1] for curve in self.curves}
        over = {kind: sorted({k for k in plan.get(kind, ()) if k != "all" and k > most[kind]}) for kind in most}
        return {kind: ks for kind, ks in over.items() if ks}

    def save(self, folder: str | Path) -> None:
        content = {"format": "emovllm-validation", "format_version": FORMAT, **asdict(self)}
        write_atomically(Path(folder) / FILE, (json.dumps(content) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Validation:
        """Raises: ResultsError."""
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (version := content.get("format_version")) not in READABLE:
                raise ValueError(f"format_version {version!r}; this emovllm reads {' and '.join(map(str, READABLE))}")
            if version < FORMAT:
                content |= {"pure": [], "trajectories": []}
            content["curves"] = [Curve(**curve) for curve in content["curves"]]
            for name in ("components", "pure"):
                content[name] = [Components(**components) for components in content[name]]
            content["trajectories"] = [Trajectory(**trajectory) for trajectory in content["trajectories"]]
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except FileNotFoundError:
            raise ResultsError(f"{path}: missing; `emovllm validate` writes it") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResultsError(f"{path}: {error}") from None


def rounded(values: Any, digits: int = 6) -> Any:
    """Nested lists of floats with so many significant digits: what the file holds."""
    if getattr(values, "ndim", 0):
        return [rounded(value, digits) for value in values]
    return float(f"{float(values):.{digits}g}")


def findings_digest(findings: Findings) -> str:
    """sha256 over all that findings hold."""
    digest = hashlib.sha256(json.dumps([findings.emotions, findings.groups]).encode())
    for array in findings.arrays().values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def injection_digest(circuit: Circuit) -> str:
    """sha256 over what is injected at lambda 1: strengths that are chosen later leave it as it is."""
    digest = hashlib.sha256(" ".join(circuit.names).encode())
    for kind, layer in circuit.sites():
        digest.update(f"{kind}.{layer}".encode())
        digest.update(np.ascontiguousarray(circuit.site_delta(kind, layer)).tobytes())
    return digest.hexdigest()
