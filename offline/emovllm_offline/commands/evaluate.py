"""`emovllm evaluate`. API keys are read from environment variables and sent to the servers that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, STRENGTHS, Options, published_command
from emovllm_offline.commands.judging import JUDGE_OR_READOUT, JudgeOptions
from emovllm_offline.commands.shared import (
    BASE_URL,
    KEY_VARIABLE,
    SERVED_CIRCUIT,
    SERVED_MODEL,
    EvaluationOptions,
    arguments,
)
from emovllm_offline.evaluation.choice import USUAL_STRENGTHS


@dataclass(frozen=True)
class EvaluateOptions(Options):
    model: Annotated[str | None, SERVED_MODEL] = None
    _: KW_ONLY
    circuit: Annotated[str | None, SERVED_CIRCUIT] = None
    data: Annotated[
        str,
        Parameter(
            help="sev-test, closed (once a release), sev, a SEV file, or lines with `user` (and `id`, `valence`)",
            metavar="FILE",
        ),
    ] = "sev-test"
    methods: Annotated[tuple[str, ...], COMMAS, Parameter(help="what is compared", metavar="NAME,...")] = (
        "none",
        "prompting",
        "steering",
        "circuits",
        "circuits+prompting",
    )
    strengths: Annotated[
        tuple[float, ...],
        STRENGTHS,
        Parameter(help="1.0 is the recommended strength; of steering, the paper's"),
    ] = USUAL_STRENGTHS
    further: Annotated[
        tuple[str, ...],
        QUIET,
        Parameter(
            name="--with",
            help="fields of the circuit methods' requests, a further condition of this name beside the plain ones, "
            """such as fading='{"emotion_schedule": {"hold": 20, "half_life": 40}}'; repeatable""",
            metavar="NAME=JSON",
        ),
    ] = ()
    common: Annotated[EvaluationOptions, FLAT] = field(default_factory=EvaluationOptions)
    base_url: Annotated[str | None, BASE_URL] = None
    api_key_variable: Annotated[str, KEY_VARIABLE] = "OPENAI_API_KEY"
    out: Annotated[Path, Parameter(metavar="DIR", help="folder of the results")] = Path("emovllm-evaluate")
    paper_way: Annotated[
        int,
        Ge(0),
        Parameter(help="prompts on which the paper's way is timed, 0 for none; local models only", metavar="N"),
    ] = 6
    judge: Annotated[tuple[str, ...], COMMAS, JUDGE_OR_READOUT, Parameter(metavar="NAME[,NAME...]")] = ("local",)
    probe: Annotated[
        str | None,
        Parameter(
            help="what the judge readout and targets read with (default: the probe in the circuit's folder)",
            metavar="DIR",
        ),
    ] = None
    judging: Annotated[JudgeOptions, FLAT] = field(default_factory=JudgeOptions)

    @property
    def resumes_from(self) -> Path:
        return self.out


def main(options: Annotated[EvaluateOptions, FLAT] = EvaluateOptions()) -> None:
    """Does a circuit steer, and at what cost? Asks a model every message by every method, under the same greedy
    decoding, in one mixed batch of the real engine; has the replies judged; and measures beside accuracy what it costs:
    perplexity, repetition, variety, length, relevance. The judge readout reads the model while it writes, not the text:
    beside another judge, the page shows what is felt against what is shown. Writes summary.json, summary.md, page.html
    and scored.jsonl. Interrupted, the same command goes on.

    API keys are read from environment variables and sent to the servers that you name, nowhere else.
    """
    from emovllm_offline.data.messages import load_messages
    from emovllm_offline.data.styles import load_style
    from emovllm_offline.evaluation import tables
    from emovllm_offline.evaluation.evaluate import evaluate
    from emovllm_offline.evaluation.further import read_further
    from emovllm_offline.evaluation.plan import Asked
    from emovllm_offline.evaluation.results import PAGE
    from emovllm_offline.evaluation.target import Where
    from emovllm_offline.judges.judge import READOUT
    from emovllm_offline.judges.readout import ReadoutJudge, ReplyJudge

    common, cache = options.common, options.out / "judged.jsonl"
    further = read_further(options.further)

    def make(name: str, emotions: Sequence[str]) -> ReplyJudge:
        if name == READOUT:
            return ReadoutJudge()
        return options.judging.make(name, emotions, cache, common.concurrency)

    results = evaluate(
        Where(
            options.model,
            options.circuit,
            options.base_url,
            options.api_key_variable,
            common.concurrency,
            arguments(common.engine_args),
            probe=options.probe,
        ),
        Asked(
            load_messages(options.data, common.limit),
            load_style(common.prompt_style),
            options.methods,
            options.strengths,
            common.max_tokens,
            further=further,
        ),
        lambda emotions: [make(name, emotions) for name in options.judge],
        options.out,
        seed=common.seed,
        paper_way_items=options.paper_way,
        fresh=common.fresh,
        command=published_command("evaluate", options),
    )
    tables.overview(results.cells, options.judge).print()
    print(options.out / PAGE)
