"""What several commands share: options of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.errors import OptionError
from emovllm.options import QUIET, Options

if TYPE_CHECKING:
    from emovllm_offline.judges.judge import Judge

MODEL = Parameter(help="folder or Hugging Face id (default: the default model)", show_default=False)
JUDGE = Parameter(
    help="local (sentence embeddings), hf (a text-classification model), openai (a model that is told the emotion), "
    "openai-blind (one that is not), lexicon (a word list)"
)
# Known to the judges themselves, of which other distributions bring more.
JudgeName = str


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Options):
    """What belongs to --judge, whichever is chosen."""

    judge_model: Annotated[
        str | None, Parameter(help="the judge's model: its name at its endpoint; for hf a folder or id", metavar="M")
    ] = None
    judge_base_url: Annotated[
        str | None, Parameter(help="the judge's OpenAI-compatible endpoint (default: OpenAI's)", metavar="URL")
    ] = None
    judge_labels: Annotated[
        str | None, Parameter(help="emotions by the hf model's names for them", metavar="THEIRS=OURS,...")
    ] = None
    judge_device: Annotated[str, Parameter(help="torch device of local and hf")] = "cpu"
    lexicon: Annotated[
        Path | None, Parameter(help="word list of the lexicon judge (default: the packaged one)", metavar="FILE")
    ] = None

    def labels(self) -> dict[str, str] | None:
        """Raises: OptionError."""
        if self.judge_labels is None:
            return None
        pairs = [part.split("=") for part in self.judge_labels.split(",")]
        if not all(len(pair) == 2 and all(pair) for pair in pairs):
            raise OptionError(f"--judge-labels: expected THEIRS=OURS with commas between, got {self.judge_labels!r}")
        return {theirs.strip().lower(): ours.strip() for theirs, ours in pairs}

    def make(self, name: str, emotions: Sequence[str], cache: Path | None, concurrency: int) -> Judge:
        """The judge of that name. Raises: OptionError, and as `make_judge`."""
        from emovllm_offline.judges.judge import make_judge

        return make_judge(
            name,
            emotions,
            model=self.judge_model,
            base_url=self.judge_base_url,
            concurrency=concurrency,
            labels=self.labels(),
            lexicon=self.lexicon,
            device=self.judge_device,
            cache=cache,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """Options that `evaluate` and `calibrate` share."""

    limit: Annotated[
        int | None, Gt(0), Parameter(help="use only the first N scenarios (of three messages), or lines", metavar="N")
    ] = None
    prompt_style: Annotated[
        str, Parameter(help="the prompts that ask for an emotion, and the neutral one", metavar="NAME|FILE")
    ] = "paper"
    max_tokens: Annotated[int, Gt(0), Parameter(help="of a reply", metavar="N")] = 100
    concurrency: Annotated[int, Gt(0), Parameter(help="requests at a time", metavar="N")] = 64
    engine_args: Annotated[
        str,
        QUIET,
        Parameter(
            help="further arguments of vllm serve, in one string, for the local engine",
            metavar="ARGS",
            allow_leading_hyphen=True,
        ),
    ] = ""
    seed: Annotated[int, Parameter(help="of bootstrap and samples", metavar="N")] = 0
    fresh: Annotated[bool, QUIET, Parameter(help="forget what --out holds")] = False
