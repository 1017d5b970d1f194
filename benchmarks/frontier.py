"""Accuracy against quality of one or more circuits at several lambdas, in one process, without an engine.

    scripts/env python benchmarks/frontier.py CIRCUIT ... --lambdas 0.75,1 --messages 12

The quick measure that docs/experiments.md compares circuits by before `emovllm calibrate` measures one in the engine.
The messages are of SEV, none of them among those that `emovllm refine` learns from; greedy, the neutral prompt,
float32. Prompted replies, the yardstick of fluency, are kept in --cache, since they are the same for every circuit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from emovllm.circuit import load_circuit
from emovllm.default_model import resolve_model
from emovllm_offline.data import Item, expand, load_sev
from emovllm_offline.decoder import Decoder, find_decoder, repeat_cache
from emovllm_offline.evaluation.likelihood import Likelihoods
from emovllm_offline.evaluation.metrics import text_metrics
from emovllm_offline.examples import load_examples
from emovllm_offline.generate import stop_tokens
from emovllm_offline.lexicon import LexiconJudge
from emovllm_offline.local_judge import LocalJudge
from emovllm_offline.prompts import render
from emovllm_offline.refine import Deltas
from emovllm_offline.styles import load_style


class Row(NamedTuple):
    """One steered reply; fluency: its perplexity given the instruction, over the prompted reply's."""

    emotion: str
    scale: float
    local: str | None
    lexicon: str | None
    repetition: float
    fluency: float
    cut: bool
    text: str


@torch.no_grad()
def generate(
    decoder: Decoder, prompt: Sequence[int], stops: set[int], limit: int, added: dict[Any, torch.Tensor], rows: int
) -> list[tuple[list[int], bool]]:
    """Greedy replies to one prompt; `added`: for each projection what to add to its input, [rows, 1, width].

    Returns: each reply's tokens, and whether the limit ended it.
    """
    cache = repeat_cache(decoder.prefix_cache(prompt[:-1]), rows)
    handles = [
        module.register_forward_pre_hook(lambda _, args, vector=vector: (args[0] + vector, *args[1:]))
        for module, vector in added.items()
    ]
    ids = torch.full((rows, 1), prompt[-1])
    replies: list[list[int]] = [[] for _ in range(rows)]
    open_rows = set(range(rows))
    try:
        for position in range(len(prompt) - 1, len(prompt) - 1 + limit):
            logits = decoder.model(input_ids=ids, position_ids=torch.tensor([[position]]), past_key_values=cache,
                                   use_cache=True).logits  # fmt: skip
            best = logits[:, -1].argmax(-1)
            for row in list(open_rows):
                if (token := int(best[row])) in stops:
                    open_rows.remove(row)
                else:
                    replies[row].append(token)
            if not open_rows:
                break
            ids = best[:, None]
    finally:
        for handle in handles:
            handle.remove()
    return [(reply, row in open_rows) for row, reply in enumerate(replies)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("circuits", nargs="+", metavar="CIRCUIT")
    add("--model", default="default")
    add("--lambdas", type=lambda text: [float(part) for part in text.split(",")], default=[1.0], metavar="X,...")
    add("--messages", type=int, default=12)
    add("--prompt-style", default="fewshot")
    add("--max-tokens", type=int, default=60)
    add("--cache", type=Path, default=Path("frontier-prompted.json"))
    args = parser.parse_args()
    folder, style = resolve_model(args.model), load_style(args.prompt_style)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    decoder, likelihoods, stops = find_decoder(model), Likelihoods(model), stop_tokens(model, tokenizer)
    learnt = {example.id for example in load_examples()}
    items = random.Random(1).sample([i for i in expand(load_sev("sev")) if i.id not in learnt], args.messages)
    prompted: dict[str, list[int]] = json.loads(args.cache.read_text()) if args.cache.exists() else {}

    def instruction(number: int, item: Item, name: str) -> tuple[int, ...]:
        frame = style.frames(name, number)[0].model_copy(update={"reply": None})
        return render(tokenizer, frame, item.user).ids

    for source in args.circuits:
        circuit = load_circuit(source)
        deltas = Deltas(decoder, circuit, 1.0)
        cells = [(e, scale) for scale in args.lambdas for e in range(len(circuit.names))]
        which = torch.tensor([e for e, _ in cells])
        scales = torch.tensor([scale for _, scale in cells])[:, None, None]
        added = {module: delta.detach()[which][:, None] * scales for module, delta in deltas.by_module()}
        rows = []
        for number, item in enumerate(tqdm(items, desc=Path(source).name, unit="message", file=sys.stderr)):
            prompt = render(tokenizer, style.neutral, item.user).ids
            replies = generate(decoder, prompt, stops, args.max_tokens, added, len(cells))
            nll = {}
            for e, name in enumerate(circuit.names):
                asked = instruction(number, item, name)
                key = f"{style.name} {item.id} {name}"
                if key not in prompted:
                    prompted[key] = generate(decoder, asked, stops, args.max_tokens, {}, 1)[0][0]
                mine = [row for row, (of, _) in enumerate(cells) if of == e]
                texts = [replies[row][0] or [min(stops)] for row in mine] + [prompted[key] or [min(stops)]]
                *steered, plain = likelihoods.means(asked, texts)
                nll |= {row: value - plain for row, value in zip(mine, steered, strict=True)}
            texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens, _ in replies]
            targets = [circuit.names[e] for e, _ in cells]
            judged = [judge.judge(texts, targets) for judge in (LocalJudge(circuit.names), LexiconJudge(circuit.names))]
            for row, (e, scale) in enumerate(cells):
                tokens, cut = replies[row]
                rows.append(Row(circuit.names[e], scale, judged[0][row].label, judged[1][row].label,
                                text_metrics(texts[row], tokens).repetition, float(np.exp(nll[row])), cut,
                                texts[row]))  # fmt: skip
        args.cache.write_text(json.dumps(prompted))
        show(source, rows, args.lambdas, circuit.names)


def show(source: str, rows: Sequence[Row], lambdas: Sequence[float], names: Sequence[str]) -> None:
    for scale in lambdas:
        of_scale = [row for row in rows if row.scale == scale]
        print(f"{Path(source).name} lambda {scale:g}: {_said(of_scale)}")
        for name in names:
            of_emotion = [row for row in of_scale if row.emotion == name]
            labels = Counter(str(row.local) for row in of_emotion).most_common(3)
            print(f"    {name}: {_said(of_emotion)}; {', '.join(f'{n} {label}' for label, n in labels)}")


def _said(rows: Sequence[Row]) -> str:
    local = np.mean([row.local == row.emotion for row in rows])
    lexicon = np.mean([row.lexicon == row.emotion for row in rows])
    repetition = np.mean([row.repetition for row in rows])
    fluency = np.median([row.fluency for row in rows])
    cut = np.mean([row.cut for row in rows])
    return (
        f"local {local:.0%}, lexicon {lexicon:.0%}, repetition {repetition:.1%}, fluency {fluency:.2f}, cut {cut:.0%}"
    )


if __name__ == "__main__":
    main()
