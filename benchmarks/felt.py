"""Felt and shown: what a probe reads in the states that wrote steered replies, beside what a judge reads in their text.

    scripts/env python benchmarks/felt.py --probe DIR [--model MODEL --circuit DIR] [--scenarios 20] [--replies FILE]

Each of the first scenarios of `sev-dev` (one of its events) is answered in every emotion of the circuit and without
one, greedily, in float32, and read token by token. Prints, by the emotion asked for, the mean probability of each label
over the replies, in how many the asked one leads among all labels but `neutral`, read over the reply and at the
prompt's last token, and how many the local judge takes for it; 95 % intervals by bootstrap over scenarios. The plain
replies' row is the control.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emovllm import cpu
from emovllm.circuit_files import load_circuit
from emovllm.emotion import KEY, NONE
from emovllm.models import NAME, resolve_model, shipped_circuits
from emovllm.readout import leads
from emovllm_offline.data.messages import Message, load_messages
from emovllm_offline.intervals import Estimate, by_group
from emovllm_offline.judges.local import LocalJudge
from emovllm_server.serve import prepare_environment


@dataclass(frozen=True)
class Reply:
    asked: str
    group: str
    text: str
    reply: dict[str, float]
    prompt: dict[str, float]


def ask(llm: Any, messages: Sequence[Message], names: Sequence[str], max_tokens: int) -> list[Reply]:
    from vllm import SamplingParams

    asks = [(message, name) for message in messages for name in names]
    params = [
        SamplingParams(temperature=0, max_tokens=max_tokens, extra_args={"emotion": name, "emotion_readout": "reply"})
        for _, name in asks
    ]
    outputs = llm.chat([[{"role": "user", "content": message.user}] for message, _ in asks], params)
    completions = [output.outputs[0] for output in outputs]
    return [
        Reply(name, message.group or message.id, made.text, made.emotion_readout.reply, made.emotion_readout.prompt)
        for (message, name), made in zip(asks, completions, strict=True)
    ]


def percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def table(replies: Sequence[Reply], labels: Sequence[str], names: Sequence[str]) -> str:
    shown = LocalJudge([name for name in names if name != NONE])
    lines = [
        f"| asked | {' | '.join(labels)} | leads in the reply | leads at the prompt's end | shown (local judge) |",
        "|---|" + "---:|" * (len(labels) + 3),
    ]
    every: list[list[bool]] = [[], [], []]
    groups: list[str] = []
    for name in names:
        own = [reply for reply in replies if reply.asked == name]
        means = [f"{np.mean([reply.reply[label] for reply in own]):.2f}" for label in labels]
        cells = ["", "", ""]
        if name != NONE:
            verdicts = shown.judge([reply.text for reply in own], [name] * len(own))
            hits = [
                [leads(reply.reply, name) for reply in own],
                [leads(reply.prompt, name) for reply in own],
                [verdict.match for verdict in verdicts],
            ]
            of = [reply.group for reply in own]
            cells = [percent(by_group([float(hit) for hit in kind], of)) for kind in hits]
            groups += of
            for so_far, kind in zip(every, hits, strict=True):
                so_far += kind
        lines.append(f"| {name} | {' | '.join([*means, *cells])} |")
    all_cells = [percent(by_group([float(hit) for hit in kind], groups)) for kind in every]
    lines.append(f"| all six | {' | '.join([''] * len(labels) + all_cells)} |")
    felt, _, seen = (np.array(kind) for kind in every)
    lines += [
        "",
        f"Felt and shown {(felt & seen).mean():.0%}, felt alone {(felt & ~seen).mean():.0%}, shown alone "
        f"{(~felt & seen).mean():.0%}, neither {(~felt & ~seen).mean():.0%}, of {len(felt)} replies.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", type=Path, help="default: the circuit's")
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--circuit", type=Path, default=shipped_circuits() / NAME)
    parser.add_argument("--scenarios", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--replies", type=Path, metavar="FILE", help="to write them to, as JSON lines")
    options = parser.parse_args()
    prepare_environment()
    cpu.keep_small()
    from emovllm.engine.llm import LLM

    probe = str(options.probe or options.circuit)
    engine: dict[str, Any] = {"max_model_len": 1024, "dtype": "float32", "enforce_eager": True}
    llm = LLM(
        resolve_model(options.model),
        circuit=str(options.circuit),
        additional_config={KEY: {"probe": probe}},
        **engine,
    )
    # Three messages a scenario: its events of different valence.
    messages = load_messages("sev-dev", options.scenarios)
    chosen = [message for number, message in enumerate(messages) if number % 3 == (number // 3) % 3]
    names = [*load_circuit(options.circuit).names, NONE]
    replies = ask(llm, chosen, names, options.max_tokens)
    if options.replies:
        options.replies.write_text("".join(json.dumps(vars(reply)) + "\n" for reply in replies))
    print(table(replies, list(replies[0].reply), names))


if __name__ == "__main__":
    main()
