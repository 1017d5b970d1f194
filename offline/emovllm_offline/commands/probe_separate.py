"""`emovllm probe separate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt
from cyclopts import Parameter

from emovllm.options import FLAT, QUIET, REPEATED, Options, published_command
from emovllm_offline.commands.shared import MODEL
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.reading.settings import BATCH_TOKENS

if TYPE_CHECKING:
    from emovllm_offline.data.sev import Record
    from emovllm_offline.data.styles import Style
    from emovllm_offline.reading.separate import Piece


@dataclass(frozen=True)
class ProbeSeparateOptions(Options):
    model: Annotated[str, MODEL] = "default"
    _: KW_ONLY
    replies: Annotated[Path, Parameter(help="what `emovllm elicit` wrote; its accepted replies count", metavar="DIR")]
    data: Annotated[str, Parameter(help="the scenarios that it was given", metavar="FILE")] = "sev-small"
    style: Annotated[
        tuple[str, ...], REPEATED, Parameter(help="the styles that it was given; repeatable", metavar="NAME|FILE")
    ] = ("paper",)
    out: Annotated[Path, Parameter(help="folder for separate.json and the report", metavar="DIR")]
    limit: Annotated[int | None, Gt(0), Parameter(help="use only the first N scenarios", metavar="N")] = None
    max_tokens: Annotated[int, Gt(0), Parameter(help="leave out replies that are longer, with their prompts")] = 512
    batch_tokens: Annotated[int, Gt(0), Parameter(help="tokens of a forward", metavar="N")] = BATCH_TOKENS
    seed: Annotated[int, Ge(0), Parameter(help="of the bootstrap", metavar="N")] = 0
    loading: Annotated[ModelOptions, FLAT] = field(default_factory=ModelOptions)
    work: Annotated[
        Path | None, Parameter(help="folder from which an interrupted run goes on (default: OUT.work)", metavar="DIR")
    ] = None
    fresh: Annotated[bool, QUIET, Parameter(help="forget what was read before")] = False

    @property
    def resumes_from(self) -> Path:
        from emovllm_offline.storage.places import work_folder

        return self.work or work_folder(self.out)


def main(options: Annotated[ProbeSeparateOptions, FLAT]) -> None:
    """How far apart do emotions lie in the hidden states, layer by layer: while the model writes emotional replies,
    while it writes the same words unasked, and while it reads them as its user's message? Beside what anisotropy alone
    gives, and with it taken off. Writes separate.json, report.md and report.html. Interrupted, the same command goes
    on.
    """
    from emovllm_offline.data import sev
    from emovllm_offline.data.styles import load_style
    from emovllm_offline.model.find import find_decoder
    from emovllm_offline.model.load import load, versions
    from emovllm_offline.model.spec import model_size
    from emovllm_offline.reading.separate import Separated, pieces_digest, reads_of, separate
    from emovllm_offline.reading.separate_report import summary, write_report
    from emovllm_offline.storage.lock import forget

    styles = [load_style(style) for style in options.style]
    records = sev.load_sev(options.data)
    pieces = _pieces(options, records, styles)
    loaded = load(options.model, options.loading.dtype, options.loading.device)
    decoder = find_decoder(loaded.network)
    most = decoder.most_tokens(options.max_tokens)
    reads = reads_of(loaded.tokenizer, pieces, styles[0].neutral, most)
    if options.fresh:
        forget(options.resumes_from)
    ways = separate(decoder, reads, options.resumes_from, {}, tokens=options.batch_tokens, seed=options.seed)
    separated = Separated(
        model=loaded.public_id,
        emotions=dict(sorted(Counter(piece.emotion for piece in reads.pieces).items())),
        groups=len({piece.group for piece in reads.pieces}),
        unrelated=reads.unrelated,
        ways=ways,
        about={
            "command": published_command("probe separate", options),
            "data": sev.digest(records),
            "replies": pieces_digest(reads.pieces),
            "styles": {style.name: style.digest() for style in styles},
            "left out": reads.left_out,
            "size": model_size(decoder),
            "dtype": str(options.loading.dtype),
            "versions": versions(),
        },
    )
    write_report(separated, options.out)
    print(f"{options.out}: {summary(separated)}")


def _pieces(options: ProbeSeparateOptions, records: Sequence[Record], styles: Sequence[Style]) -> list[Piece]:
    """The accepted replies of a finished run, with their prompts. Raises: ElicitError, StoredError."""
    from emovllm_offline.discovery.elicit import REPLIES, load_accepted, load_replies, tasks
    from emovllm_offline.reading.separate import Piece

    load_accepted(options.replies, records, styles)  # holds the run to its inputs
    scenarios = {record.skeleton_id for record in records[: options.limit]}
    return [
        Piece(reply.reply, reply.emotion, group, task.question.frame, task.question.user)
        for task, reply in zip(tasks(records, styles), load_replies(options.replies / REPLIES), strict=True)
        for group in [reply.item.rpartition(".")[0]]
        if reply.match and group in scenarios
    ]
