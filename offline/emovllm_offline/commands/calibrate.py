"""`emovllm calibrate`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, STRENGTHS, Options, published_command
from emovllm_offline.commands.judging import JUDGE, JudgeOptions
from emovllm_offline.commands.shared import MODEL, EvaluationOptions, arguments
from emovllm_offline.evaluation.choice import LAMBDAS, MORE_REPETITION, MOST_FLUENCY


@dataclass(frozen=True)
class CalibrateOptions(Options):
    model: Annotated[str | None, MODEL] = None
    _: KW_ONLY
    circuit: Annotated[
        str | None, Parameter(help="the circuit: a folder, or a Hugging Face repository id", metavar="DIR")
    ] = None
    data: Annotated[
        str,
        Parameter(help="sev-dev, sev, a SEV file, or JSON lines with `user`; never the test set", metavar="FILE"),
    ] = "sev-dev"
    strengths: Annotated[tuple[float, ...], STRENGTHS, Parameter(help="lambdas to try")] = LAMBDAS
    scopes: Annotated[
        tuple[str, ...],
        COMMAS,
        QUIET,
        Parameter(
            help="generation, prompt_last, all: scopes to try too (default: the circuit's own alone)",
            metavar="NAME,...",
        ),
    ] = ()
    most_fluency: Annotated[
        tuple[float, ...],
        COMMAS,
        Parameter(
            help="median perplexity given the instruction, over the prompted reply's; of several, an emotion gets the "
            "least within which it shows in half of its replies",
            metavar="X,...",
        ),
    ] = (MOST_FLUENCY,)
    more_repetition: Annotated[
        float,
        Parameter(
            help="mean share of repeated 3-grams beyond that of prompted or plain replies, whichever is more",
            metavar="X",
        ),
    ] = MORE_REPETITION
    common: Annotated[EvaluationOptions, FLAT] = field(default_factory=EvaluationOptions)
    out: Annotated[Path | None, Parameter(help="default: calibration in CIRCUIT.work", metavar="DIR")] = None
    judge: Annotated[str, JUDGE] = "local"
    judging: Annotated[JudgeOptions, FLAT] = field(default_factory=JudgeOptions)

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import calibration_folder

        return self.out or calibration_folder(self.circuit or ".")


def main(options: Annotated[CalibrateOptions, FLAT] = CalibrateOptions()) -> int:
    """Find the strengths to serve a circuit at: sweeps lambda, and writes into the circuit, for each emotion, the most
    accurate one that keeps fluency and repetition within bounds (recommended: what strength 1.0 stands for), the
    largest one before replies collapse (maximal: the cap), and the scores. Writes calibration.json and frontier.png
    into OUT. Refuses the test set. Interrupted, the same command goes on.
    """
    from emovllm_offline.data.messages import load_messages
    from emovllm_offline.data.styles import load_style
    from emovllm_offline.evaluation.calibrate import calibrate, table
    from emovllm_offline.evaluation.choice import Bounds
    from emovllm_offline.evaluation.plan import CIRCUITS, NONE, PROMPTING, Asked
    from emovllm_offline.evaluation.target import Where

    common, out = options.common, options.resumes_from
    tightest, *looser = sorted(options.most_fluency)
    calibrated = calibrate(
        Where(
            options.model,
            options.circuit,
            concurrency=common.concurrency,
            engine_args=arguments(common.engine_args),
        ),
        Asked(
            load_messages(options.data, common.limit),
            load_style(common.prompt_style),
            (NONE, PROMPTING, CIRCUITS),
            options.strengths,
            common.max_tokens,
            options.scopes or ("",),
        ),
        lambda emotions: [options.judging.make(options.judge, emotions, out / "judged.jsonl", common.concurrency)],
        out,
        bounds=Bounds(tightest, options.more_repetition, tuple(looser)),
        seed=common.seed,
        fresh=common.fresh,
        command=published_command("calibrate", options),
    )
    table(calibrated, options.judge).print()
    uncalibrated = calibrated.uncalibrated
    print(f"{options.circuit}: {len(calibrated.choices) - len(uncalibrated)} emotions calibrated; see {out}")
    # An emotion that could not be calibrated is no success.
    return 1 if uncalibrated else 0
