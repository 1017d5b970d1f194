"""Evaluating and calibrating a circuit, by the engine: both serve the model in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.errors import CircuitError, EvaluationError, ModelError
from emovllm_offline.api.results import Picture, Row
from emovllm_offline.api.serving import Server, place_of, refuse_without_circuit, where_of
from emovllm_offline.data.messages import TEST_SET, load_messages
from emovllm_offline.data.styles import load_style
from emovllm_offline.evaluation import calibrate as calibration
from emovllm_offline.evaluation import evaluate as evaluation
from emovllm_offline.evaluation import figures
from emovllm_offline.evaluation.calibrate import Calibrated
from emovllm_offline.evaluation.choice import LAMBDAS, USUAL_STRENGTHS, Bounds
from emovllm_offline.evaluation.felt import Felt, Parting
from emovllm_offline.evaluation.plan import CIRCUITS, NONE, PROMPTING, Asked
from emovllm_offline.evaluation.results import PAGE
from emovllm_offline.evaluation.settings import CalibrationSettings, EvaluationSettings, RunSettings
from emovllm_offline.evaluation.summary import ALL, Cell
from emovllm_offline.intervals import Estimate
from emovllm_offline.judges.judge import READOUT, CachedJudge, Judge, make_judge
from emovllm_offline.judges.readout import ReadoutJudge, ReplyJudge
from emovllm_offline.storage.places import calibration_folder

# A judge's name, or what makes one for these emotions.
JudgeChoice = str | Callable[[Sequence[str]], Judge]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Does a circuit steer, and at what cost?

    cells: every measure with its interval, by method, strength, emotion and valence. folder: holds all files,
    `page.html` among them. read: what the judge `readout` adds to them; None without it.
    """

    cells: Sequence[Cell]
    judges: tuple[str, ...]
    folder: Path
    read: Felt | None = None

    @property
    def page(self) -> Path:
        """All tables and plots, and replies drawn at random."""
        return self.folder / PAGE

    def table(self, by: Literal["method", "emotion", "valence", "emotion and valence"] = "method") -> list[Row]:
        """Of each method and strength: over everything, of each emotion, of the messages of each valence, or of each
        emotion on those. Accuracy of `none`: false positives. None stands for what cannot be measured."""
        names = () if by == "method" else by.split(" and ")
        told = ("emotion" in names, "valence" in names)
        return [self._row(cell, names) for cell in self.cells if (cell.emotion != ALL, cell.valence != ALL) == told]

    def _row(self, cell: Cell, by: Sequence[str]) -> Row:
        return {
            "method": cell.condition.method,
            "strength": cell.condition.strength,
            "with": cell.condition.further,
            **{name: getattr(cell, name) for name in by},
            "replies": cell.replies,
            **{f"accuracy, {judge}": _value(cell.accuracy[judge]) for judge in self.judges},
            "perplexity": _value(cell.perplexity),
            "fluency": _value(cell.fluency),
            "relevance": _value(cell.relevance),
            "repetition": _value(cell.repetition),
            "words": _value(cell.words),
            "cut": _value(cell.capped),
            "leak": _value(cell.leak),
        }

    def felt(self, judge: str | None = None) -> list[Row]:
        """Felt against shown: of each method, strength and emotion the shares of replies that are felt and shown, felt
        alone, shown alone and neither; of `none`, the control, by chance. judge: of texts; default: the first.

        Raises: EvaluationError where there is no judge of texts, or no read-out.
        """
        judge, partings = self._texts(judge)
        return [
            {
                "method": of.condition.method,
                "strength": of.condition.strength,
                "with": of.condition.further,
                "emotion": of.emotion,
                "replies": of.replies,
                **{kind: share.value for kind, share in of.shares.items()},
            }
            for of in partings
            if of.judge == judge
        ]

    def _texts(self, judge: str | None) -> tuple[str, Sequence[Parting]]:
        texts = [name for name in self.judges if name != READOUT]
        if self.read is None or not texts or judge == READOUT:
            raise EvaluationError("felt against shown needs the judge readout, and one of texts beside it")
        return judge or texts[0], self.read.partings

    def plot(self, what: Literal["frontier", "emotions", "felt"] = "frontier", judge: str | None = None) -> Picture:
        """frontier: accuracy against fluency and repetition; emotions: accuracy of each; felt: felt against shown.
        judge: default: the first, for felt of those that judge texts. Raises: as `felt`."""
        if what == "felt":
            judge, partings = self._texts(judge)
            return Picture.of(figures.felt_and_shown(partings, judge, self._emotions))
        judge = judge or self.judges[0]
        if what == "frontier":
            return Picture.of(figures.frontier(self.cells, judge))
        return Picture.of(figures.accuracy_by_emotion(self.cells, judge, self._emotions))

    @property
    def _emotions(self) -> list[str]:
        return list(dict.fromkeys(cell.emotion for cell in self.cells if cell.emotion != ALL))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A circuit with the strengths that were chosen, as its folder holds it now; what they were chosen from, and
    where that is kept. calibrated.uncalibrated: emotions for which no strength will do."""

    circuit: Circuit
    calibrated: Calibrated
    bounds: Bounds
    folder: Path

    def table(self) -> list[Row]:
        """Of each emotion: its lambdas, and what replies at the recommended one are like. None for an emotion that was
        left as it was."""
        judge = self.circuit.spec.provenance["calibration"]["judge"]["name"]
        return [
            {
                "emotion": emotion,
                "recommended": choice.recommended and choice.recommended.strength,
                "maximal": choice.recommended and choice.maximal,
                f"accuracy, {judge}": choice.recommended and choice.recommended.accuracy,
                "false positives": self.calibrated.scores.get(emotion, {}).get("false_positives"),
                "fluency": choice.recommended and choice.recommended.fluency,
                "repetition": choice.recommended and choice.recommended.repetition,
            }
            for emotion, choice in self.calibrated.choices.items()
        ]

    def plot(self) -> Picture:
        """Each emotion's frontier: accuracy against fluency over the strengths, the chosen one ringed."""
        points = self.calibrated.points[self.calibrated.scope]
        return Picture.of(figures.calibration(points, self.calibrated.choices, self.bounds))


def evaluate(
    circuit: Circuit | str | Path | None = None,
    model: str | Path | Server | None = None,
    *,
    out: str | Path,
    data: str | Path = TEST_SET,
    strengths: Sequence[float] = USUAL_STRENGTHS,
    judges: JudgeChoice | Sequence[JudgeChoice] = "local",
    limit: int | None = None,
    settings: EvaluationSettings = EvaluationSettings(),
) -> Evaluation:
    """Asks a model every message by every method, has the replies judged, and measures what accuracy costs.

    circuit: a folder, a Hugging Face repository id, or one in memory, which is saved in `out`; None for the default
        model's. Of a server, its name there.
    model: a folder or Hugging Face id, which is served for the run; None for the default model; or a `Server`.
    out: folder of the results, from which an interrupted evaluation resumes.
    data: as of `emovllm evaluate`; limit: only the first scenarios (of three messages), or lines.
    strengths: 1.0 is the recommended one; of steering, the paper's.
    judges: names, or functions that make a judge of the emotions, such as
        `lambda emotions: make_judge("hf", emotions, model="...")`. "readout" reads the model, not the text.
    Raises: EmovllmError.
    """
    out = Path(out)
    probe = None if settings.probe is None else str(settings.probe)
    served = replace(where_of(model, settings), circuit=place_of(circuit, model, out), probe=probe)
    refuse_without_circuit(circuit, model)
    chosen = [judges] if isinstance(judges, str) or callable(judges) else list(judges)
    makers = [_reply_maker(judge, out, settings) for judge in chosen]
    results = evaluation.evaluate(
        served,
        replace(_asked(data, limit, settings.methods, strengths, settings), further=settings.further),
        lambda emotions: [make(emotions) for make in makers],
        out,
        seed=settings.seed,
        paper_way_items=settings.paper_way,
        fresh=settings.fresh,
    )
    return Evaluation(results.cells, tuple(results.judges), out, results.felt)


def calibrate(
    circuit: Circuit | str | Path,
    model: str | Path | None = None,
    *,
    out: str | Path | None = None,
    data: str | Path = "sev",
    strengths: Sequence[float] = LAMBDAS,
    judge: JudgeChoice = "local",
    limit: int | None = None,
    settings: CalibrationSettings = CalibrationSettings(),
) -> Calibration:
    """Finds the strengths to serve a circuit at, and writes them into it.

    circuit: a folder, which is changed; or a circuit in memory, of which a copy in `out` is.
    model: a folder or Hugging Face id, which is served for the run; None for the default model.
    out: folder of the results, from which an interrupted calibration resumes (default: beside the circuit's folder).
    data: never the test set; limit: only the first scenarios (of three messages), or lines.
    strengths: lambdas to try. judge: as of `evaluate`.
    Raises: EmovllmError.
    """
    if isinstance(circuit, Circuit) and out is None:
        raise CircuitError("a circuit that is in memory is calibrated in the folder of the results: pass `out`")
    if not isinstance(circuit, Circuit) and not Path(circuit).is_dir():
        raise CircuitError(f"{circuit}: what is found is written into the circuit: pass its folder")
    if isinstance(model, Server):
        raise ModelError("a calibration serves the model itself: pass its folder or Hugging Face id, not a server")
    folder = calibration_folder(str(circuit)) if out is None else Path(out)
    where = replace(where_of(model, settings), circuit=place_of(circuit, model, folder))
    make = _maker(judge, folder, settings)
    calibrated = calibration.calibrate(
        where,
        replace(_asked(data, limit, (NONE, PROMPTING, CIRCUITS), strengths, settings), scopes=settings.scopes or ("",)),
        lambda emotions: [make(emotions)],
        folder,
        bounds=settings.bounds,
        seed=settings.seed,
        fresh=settings.fresh,
    )
    return Calibration(load_circuit(str(where.circuit)), calibrated, settings.bounds, folder)


def _asked(
    data: str | Path, limit: int | None, methods: Sequence[str], strengths: Sequence[float], settings: RunSettings
) -> Asked:
    return Asked(load_messages(data, limit), load_style(settings.style), methods, tuple(strengths), settings.max_tokens)


def _maker(judge: JudgeChoice, out: Path, settings: RunSettings) -> Callable[[Sequence[str]], Judge]:
    """What makes a judge whose verdicts are kept in the folder of the results."""
    cache = out / "judged.jsonl"
    if isinstance(judge, str):
        return lambda emotions: make_judge(judge, emotions, cache=cache, concurrency=settings.concurrency)
    return lambda emotions: CachedJudge(judge(emotions), cache)


def _reply_maker(judge: JudgeChoice, out: Path, settings: RunSettings) -> Callable[[Sequence[str]], ReplyJudge]:
    """The same of a judge that may read the model instead."""
    return (lambda emotions: ReadoutJudge()) if judge == READOUT else _maker(judge, out, settings)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else float(estimate.value)
