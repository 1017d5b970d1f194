"""What is known of a probe: how well it tells labels, layer by layer, beside its control; kept as `results.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from emovllm.spec import Frozen
from emovllm_offline.intervals import Estimate
from emovllm_offline.reading.corpus import Corpus, Split
from emovllm_offline.reading.layers import Probes
from emovllm_offline.reading.scores import Comparison, Resamples, confusion, f1
from emovllm_offline.storage.results_file import ResultsFile


class Figure(Frozen):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: Estimate) -> Figure:
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Scores(Frozen):
    """Macro F1 of a probe on texts that it did not learn from, that of its control (fitted to shuffled labels), and
    their difference, with intervals over groups."""

    f1: Figure
    control: Figure
    selectivity: Figure

    @classmethod
    def of(cls, comparison: Comparison) -> Scores:
        return cls(
            f1=Figure.of(comparison.f1),
            control=Figure.of(comparison.control),
            selectivity=Figure.of(comparison.selectivity),
        )


class LayerResult(Frozen):
    """One layer. depth: 1 after the last. penalty: the L2 strength that was chosen on the dev texts."""

    layer: int
    depth: float
    penalty: float
    dev: Scores
    test: Scores


class LabelResult(Frozen):
    """One label on the test texts, at the chosen layer."""

    label: str
    texts: int
    precision: float | None
    recall: float | None
    f1: float | None


class Results(ResultsFile):
    """All of `results.json`. layer: the chosen one. confusion: at that layer, on the test texts: rows are the labels
    that the texts have, columns those that the probe gives."""

    FILE = "results.json"

    format: Literal["emovllm-probe-results"] = "emovllm-probe-results"
    format_version: Literal[1] = 1
    model: str
    digest: str
    layer: int
    labels: tuple[str, ...]
    layers: Annotated[tuple[LayerResult, ...], Field(min_length=1)]
    by_label: tuple[LabelResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    about: dict[str, Any]

    @property
    def best(self) -> LayerResult:
        return next(of_layer for of_layer in self.layers if of_layer.layer == self.layer)


@dataclass(frozen=True, slots=True)
class Measured:
    """layers: of every layer. layer: the one with the best macro F1 on the dev texts, the first of equals."""

    layers: tuple[LayerResult, ...]
    layer: int


def measure(probes: Probes, corpus: Corpus, seed: int) -> Measured:
    """Scores of all layers on the texts held out."""
    scores: dict[Split, list[Comparison]] = {}
    parts: tuple[Split, ...] = ("dev", "test")
    for split in parts:
        at = corpus.of(split)
        resamples = Resamples(corpus.label[at], corpus.group[at].tolist(), len(corpus.labels), seed)
        scores[split] = [
            resamples.compare(predicted[at], control[at])
            for predicted, control in zip(probes["predicted"], probes["control"], strict=True)
        ]
    layers = tuple(
        LayerResult(
            layer=number,
            depth=(number + 1) / len(scores["dev"]),
            penalty=float(probes["penalty"][number]),
            dev=Scores.of(dev),
            test=Scores.of(test),
        )
        for number, (dev, test) in enumerate(zip(scores["dev"], scores["test"], strict=True))
    )
    return Measured(layers, max(layers, key=lambda layer: layer.dev.f1.value).layer)


def by_label(probes: Probes, corpus: Corpus, layer: int) -> tuple[np.ndarray, tuple[LabelResult, ...]]:
    """On the test texts: the confusion, [labels, labels], and what it says of each label."""
    at = corpus.of("test")
    matrix = confusion(corpus.label[at], probes["predicted"][layer][at], len(corpus.labels))
    hits, texts, given, values = np.diag(matrix), matrix.sum(1), matrix.sum(0), f1(matrix)
    return matrix, tuple(
        LabelResult(
            label=name,
            texts=int(texts[i]),
            precision=hits[i] / given[i] if given[i] else None,
            recall=hits[i] / texts[i] if texts[i] else None,
            f1=values[i] if texts[i] or given[i] else None,
        )
        for i, name in enumerate(corpus.labels)
    )
