"""What validation found: curves of the sweeps, principal components, the probe's F1; kept as `validation.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.errors import ResultsError
from emovllm.files import write_atomically
from emovllm_offline.discovery.findings import Findings

FILE = "validation.json"


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
    """Principal components of the elicitation prompts' states after one layer's MLP, at the positions of discovery."""

    layer: int
    explained: list[float]  # [3]
    points: list[list[list[float]]]  # [E][items][3]


@dataclass(frozen=True, slots=True)
class Validation:
    """All of `validation.json`.

    elicited: per site, mean score [E prompts][E directions] of the elicitation prompts; neutral: per site, mean score
    [E] of the neutral prompts. explained: [L][3]. f1: the probe's, [L][E].
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

    def signal(self, site: str) -> list[float]:
        """Per emotion, how much more its own elicitation prompts score than those of all emotions on average: the
        scale on which a change is large or small."""
        rows = self.elicited[site]
        return [row[e] - sum(other[e] for other in rows) / len(rows) for e, row in enumerate(rows)]

    def macro_f1(self) -> list[float]:
        return [sum(of_layer) / len(of_layer) for of_layer in self.f1]

    def save(self, folder: str | Path) -> None:
        content = {"format": "emovllm-validation", "format_version": 1, **asdict(self)}
        write_atomically(Path(folder) / FILE, (json.dumps(content) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path) -> Validation:
        """Raises: ResultsError."""
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("format_version") != 1:
                raise ValueError(f"format_version {content.get('format_version')!r}; this emovllm reads 1")
            content["curves"] = [Curve(**curve) for curve in content["curves"]]
            content["components"] = [Components(**components) for components in content["components"]]
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except FileNotFoundError:
            raise ResultsError(f"{path}: missing; `emovllm validate` writes it") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResultsError(f"{path}: {error}") from None


def findings_digest(findings: Findings) -> str:
    """sha256 over all that findings hold."""
    digest = hashlib.sha256(json.dumps([findings.emotions, findings.groups]).encode())
    for array in findings.arrays().values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
