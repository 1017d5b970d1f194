"""`emovllm elicit`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt
from cyclopts import Parameter

from emovllm.options import FLAT, REPEATED, Options
from emovllm_offline.commands.judging import JUDGE, JudgeOptions
from emovllm_offline.model.options import ModelOptions

if TYPE_CHECKING:
    from emovllm_offline.model.generate import Backend


@dataclass(frozen=True)
class ElicitOptions(Options):
    model: Annotated[
        str,
        Parameter(
            help="folder or Hugging Face id; with --base-url, its name there (default: the default model)",
            show_default=False,
        ),
    ] = "default"
    _: KW_ONLY
    data: Annotated[
        str, Parameter(help="sev-small (40 scenarios), sev-train (120), sev (160), sev-test, or a file", metavar="FILE")
    ] = "sev-small"
    out: Annotated[Path, Parameter(help="folder for replies.jsonl and survival.json", metavar="DIR")]
    style: Annotated[
        tuple[str, ...],
        REPEATED,
        Parameter(
            help="paper, role, replies, fewshot, twenty or a JSON file: the elicitation; repeatable",
            metavar="NAME|FILE",
        ),
    ] = ("paper",)
    judge: Annotated[str, JUDGE] = "lexicon"
    judging: Annotated[JudgeOptions, FLAT] = field(default_factory=JudgeOptions)
    base_url: Annotated[
        str | None,
        Parameter(help="generate through this OpenAI-compatible endpoint, not in this process", metavar="URL"),
    ] = None
    concurrency: Annotated[int, Gt(0), Parameter(help="requests at a time to an endpoint", metavar="N")] = 8
    minimum: Annotated[int, Gt(0), Parameter(help="complete scenario-events below which to refuse", metavar="N")] = 12
    max_new_tokens: Annotated[int, Gt(0), Parameter(help="longest reply", metavar="N")] = 100
    limit: Annotated[int | None, Gt(0), Parameter(help="use only the first N scenarios", metavar="N")] = None
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    batch_size: Annotated[int, Gt(0), Parameter(help="replies generated together in process", metavar="N")] = 16

    @property
    def resumes_from(self) -> Path:
        return self.out


def main(options: Annotated[ElicitOptions, FLAT]) -> None:
    """Bring a model to reply in each emotion, let a judge say where it did, and keep the scenarios that were accepted
    in every emotion. An interrupted run is continued by the same command.

    The API key is read from the environment variable OPENAI_API_KEY and sent to the endpoints that you name. The
    lexicon judge counts words: it is for trying things out, not for results.
    """
    from emovllm_offline.data import sev
    from emovllm_offline.data.styles import common_emotions, load_style
    from emovllm_offline.discovery.elicit import elicit
    from emovllm_offline.discovery.survival import Survival, require

    # What can fail quickly does so before the model is loaded.
    styles = [load_style(style) for style in options.style]
    records = sev.load_sev(options.data)[: options.limit]
    judge = options.judging.make(
        options.judge, common_emotions(styles), options.out / "judged.jsonl", options.concurrency
    )
    replies = elicit(
        _backend(options),
        records,
        styles,
        judge,
        options.out,
        max_new_tokens=options.max_new_tokens,
        progress=True,
    )
    survival = Survival.of(replies)
    survival.save(options.out / "survival.json")
    survival.print()
    require(survival, options.minimum)
    print(f"{options.out}: {survival.complete_items} of {survival.items} scenario-events are complete")


def _backend(options: ElicitOptions) -> Backend:
    from emovllm.models import DEFAULT_MODEL_ID
    from emovllm_offline.model.generate import EndpointBackend, ModelBackend

    if options.base_url is not None:
        from emovllm_offline.endpoint.client import Endpoint

        name = DEFAULT_MODEL_ID if options.model == "default" else options.model
        return EndpointBackend(Endpoint(name, options.base_url, concurrency=options.concurrency))
    from emovllm_offline.model.load import load

    loaded = load(options.model, options.loading.dtype, options.loading.device)
    return ModelBackend(loaded.network, loaded.tokenizer, loaded.public_id, options.batch_size)
