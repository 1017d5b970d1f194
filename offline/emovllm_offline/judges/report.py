"""How often the local judge is right: by cross-validation on its sentences, and on replies kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from emovllm.files import write_atomically
from emovllm.readout import NEUTRAL
from emovllm_offline.judges.agreement import agreement
from emovllm_offline.judges.embeddings import Embedder, shared_embedder
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.judges.local import LocalJudge, features, fit_head
from emovllm_offline.judges.sentences import LABELS, Sentences, load_sentences, named
from emovllm_offline.reporting.plots import figure, png, write_cells
from emovllm_offline.reporting.tables import Table, print_all

FILE = "judge-report.json"
FIGURE = "judge-confusion.png"
FOLDS = 5


class Score(BaseModel):
    """A judge's labels against those that the texts were written for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: float
    texts: int
    # Among the texts without any word that names or shows an emotion (`sentences.named`).
    accuracy_without_words: float
    texts_without_words: int
    confusion: tuple[tuple[int, ...], ...]  # rows: written for; columns: judged as; in the order of LABELS

    @classmethod
    def of(cls, judged: Sequence[str | None], sentences: Sentences) -> Score:
        """A text without a label counts as judged neutral."""
        matrix = np.zeros((len(LABELS), len(LABELS)), int)
        for given, label in zip(judged, sentences.labels, strict=True):
            matrix[LABELS.index(label), LABELS.index(given or NEUTRAL)] += 1
        right = np.array([given == label for given, label in zip(judged, sentences.labels, strict=True)])
        plain = ~np.array(named(sentences.texts))
        return cls(
            accuracy=float(right.mean()),
            texts=len(right),
            accuracy_without_words=float(right[plain].mean()) if plain.any() else 0.0,
            texts_without_words=int(plain.sum()),
            confusion=tuple(tuple(row) for row in matrix.tolist()),
        )

    def recall(self) -> list[float]:
        """Of each label: how many of its texts are judged as it."""
        return [row[i] / max(sum(row), 1) for i, row in enumerate(self.confusion)]

    def precision(self) -> list[float]:
        """Of each label: how many of the texts judged as it are its own."""
        return [column[i] / max(sum(column), 1) for i, column in enumerate(zip(*self.confusion, strict=True))]


class JudgeReport(BaseModel):
    """The accuracy of the local judge, and of the lexicon judge on the same texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: tuple[str, ...] = LABELS
    folds: int = FOLDS
    sentences: str  # digest
    cross_validation: Score
    cross_validation_last_layer: Score  # with the sentence embedding alone instead of all layers
    held_out: Score
    lexicon_sentences: Score
    lexicon_held_out: Score
    kappa_held_out: float | None  # Cohen's, between the two judges

    def save(self, folder: str | Path) -> None:
        """Writes FILE and FIGURE."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, (self.model_dump_json(indent=1) + "\n").encode())
        matrices = {
            f"cross-validation, {self.cross_validation.texts} sentences": np.array(self.cross_validation.confusion),
            f"held out, {self.held_out.texts} replies": np.array(self.held_out.confusion),
        }
        write_atomically(folder / FIGURE, png(_figure(self.labels, matrices)))

    def print(self) -> None:
        kappa = "undefined" if self.kappa_held_out is None else f"{self.kappa_held_out:.2f}"
        print_all(
            [
                self._accuracies(),
                _matrix("cross-validation", self.cross_validation),
                _matrix("held out", self.held_out),
                f"Cohen's kappa of local and lexicon, held out: {kappa}",
            ]
        )

    def _accuracies(self) -> Table:
        scores = {
            f"local, {self.folds}-fold cross-validation": self.cross_validation,
            "local, the same with the last layer alone": self.cross_validation_last_layer,
            "local, held out": self.held_out,
            "lexicon, sentences": self.lexicon_sentences,
            "lexicon, held out": self.lexicon_held_out,
        }
        return Table(
            ["judge and texts", "texts", "accuracy", "without emotion words", "accuracy there"],
            [
                [
                    name,
                    str(score.texts),
                    f"{score.accuracy:.3f}",
                    str(score.texts_without_words),
                    f"{score.accuracy_without_words:.3f}",
                ]
                for name, score in scores.items()
            ],
            title="accuracy of the local judge and of the lexicon judge",
        )


def judge_report(embedder: Embedder | None = None) -> JudgeReport:
    """Measures the packaged judge on the packaged sentences and held-out replies.

    Raises: JudgeError, EmbeddingError.
    """
    embedder = embedder or shared_embedder()
    sentences, held_out = load_sentences(), load_sentences("held_out")
    x = features(embedder, sentences.texts)
    local, lexicon = LocalJudge(embedder=embedder), LexiconJudge(LABELS[:-1])
    verdicts = local.judge(held_out.texts, held_out.labels)
    by_words = lexicon.judge(held_out.texts, held_out.labels)
    on_sentences = lexicon.judge(sentences.texts, sentences.labels)
    return JudgeReport(
        sentences=sentences.digest(),
        cross_validation=Score.of(cross_validate(x, sentences.labels), sentences),
        cross_validation_last_layer=Score.of(cross_validate(x[:, -embedder.width :], sentences.labels), sentences),
        held_out=Score.of([verdict.label for verdict in verdicts], held_out),
        lexicon_sentences=Score.of([verdict.label for verdict in on_sentences], sentences),
        lexicon_held_out=Score.of([verdict.label for verdict in by_words], held_out),
        kappa_held_out=agreement(verdicts, by_words).kappa,
    )


def cross_validate(x: np.ndarray, labels: Sequence[str], folds: int = FOLDS) -> list[str]:
    """The label that each text is given by a head that was not fitted on it.

    Every fold has its share of every label, dealt at random with one seed.
    """
    fold = np.empty(len(labels), int)
    rng = np.random.default_rng(0)
    for label in dict.fromkeys(labels):
        of_label = np.flatnonzero(np.array(labels) == label)
        fold[rng.permutation(of_label)] = np.arange(len(of_label)) % folds
    given = [""] * len(labels)
    for number in range(folds):
        apart = fold == number
        head = fit_head(x[~apart], [label for label, out in zip(labels, apart, strict=True) if not out])
        for i, best in zip(np.flatnonzero(apart), head.probabilities(x[apart]).argmax(1), strict=True):
            given[i] = LABELS[best]
    return given


def _matrix(title: str, score: Score) -> Table:
    return Table(
        ["", *LABELS, "recall", "precision"],
        [
            [label, *map(str, row), f"{recall:.2f}", f"{precision:.2f}"]
            for label, row, recall, precision in zip(
                LABELS, score.confusion, score.recall(), score.precision(), strict=True
            )
        ],
        title=f"{title}: rows are what was meant, columns what was judged",
    )


def _figure(labels: Sequence[str], matrices: Mapping[str, np.ndarray]) -> Any:
    """Confusion matrices by their titles, [labels, labels] counts: rows are what was meant, cells show their shares."""
    with figure(4.9) as fig:
        axes = fig.subplots(1, len(matrices), squeeze=False)[0]
        for ax, (title, counts) in zip(axes, matrices.items(), strict=True):
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            write_cells(ax, shares, "{:.0%}", image.norm)
            ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
            ax.set_yticks(range(len(labels)), labels if ax is axes[0] else [""] * len(labels))
            ax.set_xlabel("judged as")
            ax.set_title(title)
        axes[0].set_ylabel("written for")
        fig.colorbar(image, ax=list(axes), shrink=0.7, label="share of the row")
    return fig
