"""The judge that reads the model, not the text: what a probe told of the states that wrote a reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emovllm.readout import leading, leads
from emovllm_offline.judges.judge import READOUT, Judge, Verdict


class ReadoutJudge:
    """Labels a reply with the likeliest of the probe's labels but `neutral`; it matches if the target leads among them.

    So it never says that a reply has no emotion: of replies that are to have none, some label leads too. It is no
    `Judge`, which is given texts: its name stands beside theirs.
    """

    name = READOUT
    config: Mapping[str, Any] = {}

    def judge_read(self, reads: Sequence[Mapping[str, float]], targets: Sequence[str]) -> list[Verdict]:
        """reads: the mean probability of each label over a reply's tokens. A target that is no label of the probe, and
        a reply of which nothing was read, are not judged."""
        return [_verdict(read, target) for read, target in zip(reads, targets, strict=True)]


def _verdict(read: Mapping[str, float], target: str) -> Verdict:
    if not read:
        return Verdict.unjudged("nothing was read while it was written")
    lead = leading(read)
    if target not in read:
        return Verdict(False, lead, f"the probe has no label {target}", judged=False)
    return Verdict(leads(read, target), lead, f"{lead} {read[lead]:.2f}")


# What judges replies: by their texts, or by what was read.
ReplyJudge = Judge | ReadoutJudge
