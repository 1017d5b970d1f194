"""An evaluation on one page that works offline, its figures and sample replies inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emovllm_offline.evaluation.scoring import Scored
from emovllm_offline.evaluation.summary import condition_of, conditions
from emovllm_offline.evaluation.tables import Table
from emovllm_offline.validation.report import PAGE_STYLE, html_table

SAMPLES = 12


def page(title: str, notes: Sequence[str], parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    told = "\n".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{PAGE_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{told}
{body}
</body>
</html>
"""


def section(title: str, text: str, table: Table | None = None, image: bytes | None = None) -> str:
    parts = [f"<h2>{html.escape(title)}</h2>", f"<p>{html.escape(text)}</p>"]
    if image is not None:
        data = base64.b64encode(image).decode()
        parts.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">')
    if table:
        parts.append(html_table(table))
    return "\n".join(parts)


def draw_samples(scored: Sequence[Scored], seed: int, count: int = SAMPLES) -> list[tuple[str, str]]:
    """Pairs of message and emotion to show, drawn at random; each emotion as often as the count allows."""
    rng = np.random.default_rng(seed)
    messages = list(dict.fromkeys(reply.key.message for reply in scored))
    emotions = list(dict.fromkeys(reply.key.emotion for reply in scored if reply.key.emotion))
    if not emotions:
        return [(messages[i], "") for i in rng.permutation(len(messages))[:count]]
    drawn = rng.choice(len(messages), min(count, len(messages)), replace=False)
    order = rng.permutation(len(emotions))
    return [(messages[at], emotions[order[i % len(emotions)]]) for i, at in enumerate(drawn)]


def samples(scored: Sequence[Scored], judge: str, seed: int) -> str:
    """Replies side by side, one table for each pair drawn."""
    by_key = {reply.key: reply for reply in scored}
    parts = [
        "<h2>Sample replies</h2>",
        f"<p>{SAMPLES} messages and an emotion for each, drawn at random (seed {seed}), with every method's reply. "
        f"Label: what the judge {html.escape(judge)} takes it for.</p>",
    ]
    for message, emotion in draw_samples(scored, seed):
        of_message = {
            condition_of(reply): reply
            for key, reply in by_key.items()
            if key.message == message and key.emotion in ("", emotion)
        }
        rows: Table = [["method, strength", "label", "reply"]]
        for condition in conditions(list(of_message.values())):
            reply = of_message[condition]
            said = _label(reply, judge)
            rows.append([str(condition), said, reply.text + (" [cut]" if reply.capped else "")])
        user = html.escape(next(iter(of_message.values())).user)
        parts.append(f"<h3>{html.escape(emotion or 'no emotion')}</h3>\n<p>{user}</p>\n{html_table(rows)}")
    return "\n".join(parts)


def _label(reply: Scored, judge: str) -> str:
    verdicts = reply.verdicts[judge].values()
    if not any(verdict.judged for verdict in verdicts):
        return "not judged"
    return reply.label(judge) or ("match" if any(verdict.match for verdict in verdicts) else "-")


def facts(content: Mapping[str, Any]) -> Table:
    """What an evaluation was made from, as a table."""
    rows: Table = [["what", "value"]]
    for name, value in content.items():
        if isinstance(value, Mapping):
            rows += [[f"{name}.{inner}", told] for inner, told in facts(value)[1:]]
        elif isinstance(value, list | tuple):
            rows.append([name, ", ".join(map(str, value))])
        else:
            rows.append([name, f"{value:.4g}" if isinstance(value, float) else str(value)])
    return rows
