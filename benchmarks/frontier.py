"""Accuracy against quality of one or more circuits at several lambdas, in one process, without an engine.

    scripts/env python benchmarks/frontier.py CIRCUIT ... --lambdas 0.75,1 --messages 12
    scripts/env python benchmarks/frontier.py CIRCUIT --scope prompt_last
    scripts/env python benchmarks/frontier.py CIRCUIT --layers 10-19 --kind heads --half-life 20
    scripts/env python benchmarks/frontier.py CIRCUIT --share common

The quick measure by which docs/results/experiments.md compares circuits, before `emovllm calibrate` measures one in the
engine. It also tries what the engine serves another way or not at all: a scope, a part of the circuit, a strength that
decays. The messages are of `sev-dev`, from whose scenarios `emovllm refine` does not learn, or of --data; greedy, the
neutral prompt, float32. Prompted replies, the yardstick of fluency, are kept in
--cache, since they are the same for every circuit.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.progress import track
from emovllm_offline.data.messages import Message, load_messages
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import load_style
from emovllm_offline.judges.embeddings import relevance
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.judges.local import LocalJudge
from emovllm_offline.judges.text import openings, text_metrics
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.generate import stop_tokens
from emovllm_offline.model.hooks import Hook, before, hooked
from emovllm_offline.model.likelihood import Likelihoods
from emovllm_offline.model.load import load


class Row(NamedTuple):
    """One steered reply. group: its message's; fluency: its perplexity given the instruction, over the prompted
    reply's."""

    circuit: str
    message: str
    group: str
    emotion: str
    scale: float
    local: str | None
    lexicon: str | None
    repetition: float
    fluency: float
    relevance: float
    cut: bool
    text: str


@dataclass
class Added:
    """What is added to the inputs of projections, [rows, 1, width] each; `weight` scales it from step to step.

    half_life: tokens in which the weight halves; None: it stays, within the scope.
    """

    vectors: dict[Any, torch.Tensor]
    scope: str = "generation"
    half_life: float | None = None
    weight: float = 0.0

    def at(self, token: int) -> None:
        """token: of the reply to come; -1 is the prompt before its last token."""
        if token < 0:
            self.weight = float(self.scope == "all")
        else:
            decayed = 1.0 if self.half_life is None else 0.5 ** (token / self.half_life)
            self.weight = 0.0 if token and self.scope == "prompt_last" else decayed

    def hooks(self) -> list[Hook]:
        def add(vector: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor | None]:
            return lambda values: values + self.weight * vector if self.weight else None

        return [before(module, add(vector)) for module, vector in self.vectors.items()]


@torch.no_grad()
def generate(
    decoder: Decoder, prompt: Sequence[int], stops: set[int], limit: int, added: Added, rows: int
) -> list[tuple[list[int], bool]]:
    """Greedy replies to one prompt. Returns: each reply's tokens, and whether the limit ended it."""
    ids = torch.full((rows, 1), prompt[-1])
    replies: list[list[int]] = [[] for _ in range(rows)]
    open_rows = set(range(rows))
    with hooked(added.hooks()):
        added.at(-1)
        if added.weight:
            head = torch.tensor([list(prompt[:-1])]).expand(rows, -1)
            cache = decoder.model(input_ids=head, use_cache=True, logits_to_keep=1).past_key_values
        else:
            cache = repeat_cache(decoder.prefix_cache(prompt[:-1]), rows)
        for token in range(limit):
            added.at(token)
            position = len(prompt) - 1 + token
            logits = decoder.model(
                input_ids=ids, position_ids=torch.tensor([[position]]), past_key_values=cache, use_cache=True
            ).logits
            best = logits[:, -1].argmax(-1)
            for row in list(open_rows):
                if (chosen := int(best[row])) in stops:
                    open_rows.remove(row)
                else:
                    replies[row].append(chosen)
            if not open_rows:
                break
            ids = best[:, None]
    return [(reply, row in open_rows) for row, reply in enumerate(replies)]


def vectors(
    decoder: Decoder, circuit: Circuit, cells: Sequence[tuple[int, float]], args: argparse.Namespace
) -> dict[Any, torch.Tensor]:
    """What a part of the circuit adds to projections' inputs, a row for each (emotion, lambda): [rows, 1, width]."""
    which = torch.tensor([e for e, _ in cells])
    scales = torch.tensor([scale for _, scale in cells])[:, None]
    found = {}
    for site, layer in circuit.sites():
        if layer in args.layers and args.kind in (None, {"attn": "heads", "mlp": "neurons"}[site]):
            block = decoder.layers[layer]
            delta = torch.from_numpy(circuit.site_delta(site, layer))
            common = delta.mean(0, keepdim=True).expand_as(delta)
            delta = {"all": delta, "common": common, "own": delta - common}[args.share][which] * scales
            found[block.o_proj if site == "attn" else block.down_proj] = delta[:, None]
    return found


def _key(style: str, item: Message, emotion: str) -> str:
    """Of a prompted reply in --cache."""
    return f"{style} {item.id} {emotion}"


def _layers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("circuits", nargs="+", metavar="CIRCUIT")
    add("--model", default="default")
    add("--lambdas", type=lambda text: [float(part) for part in text.split(",")], default=[1.0], metavar="X,...")
    add("--data", default="sev-dev", metavar="NAME|FILE", help="of any that `emovllm evaluate` takes")
    add("--messages", type=int, default=12)
    add("--prompt-style", default="fewshot")
    add("--max-tokens", type=int, default=60)
    add("--scope", choices=("generation", "prompt_last", "all"), default="generation")
    add("--layers", type=_layers, default=range(1000), metavar="FIRST-LAST", help="only the units of these layers")
    add("--kind", choices=("neurons", "heads"), help="only these units")
    add("--share", choices=("all", "common", "own"), default="all", help="only what all emotions have, or beyond it")
    add("--half-life", type=float, metavar="TOKENS", help="lambda halves in so many tokens of the reply")
    add("--replies", type=Path, metavar="FILE", help="to add them to, as `emovllm judge-benchmark` reads them")
    add("--prompted", action="store_true", help="add the prompted replies to them, too")
    add("--cache", type=Path, default=Path("frontier-prompted.json"))
    args = parser.parse_args()
    style = load_style(args.prompt_style)
    model, tokenizer, _ = load(args.model)
    model.requires_grad_(False)
    decoder, likelihoods, stops = find_decoder(model), Likelihoods(model), stop_tokens(model, tokenizer)
    found = load_messages(args.data)
    items = random.Random(1).sample(found, min(args.messages, len(found)))
    prompted: dict[str, list[int]] = json.loads(args.cache.read_text()) if args.cache.exists() else {}

    def instruction(number: int, item: Message, name: str) -> tuple[int, ...]:
        frame = style.frames(name, number)[0].model_copy(update={"reply": None})
        return render(tokenizer, frame, item.user).ids

    for source in args.circuits:
        circuit = load_circuit(source)
        if circuit.experts:
            raise SystemExit(f"{source}: vectors of routed experts are not measured here")
        cells = [(e, scale) for scale in args.lambdas for e in range(len(circuit.names))]
        judges = LocalJudge(circuit.names), LexiconJudge(circuit.names)
        added = Added(vectors(decoder, circuit, cells, args), args.scope, args.half_life)
        rows = []
        for number, item in enumerate(track(items, Path(source).name, len(items), unit="messages")):
            prompt = render(tokenizer, style.neutral, item.user).ids
            replies = generate(decoder, prompt, stops, args.max_tokens, added, len(cells))
            nll = {}
            for e, name in enumerate(circuit.names):
                asked = instruction(number, item, name)
                key = _key(style.name, item, name)
                if key not in prompted:
                    prompted[key] = generate(decoder, asked, stops, args.max_tokens, Added({}), 1)[0][0]
                mine = [row for row, (of, _) in enumerate(cells) if of == e]
                texts = [replies[row][0] or [min(stops)] for row in mine] + [prompted[key] or [min(stops)]]
                *steered, plain = likelihoods.means(asked, texts)
                nll |= {row: value - plain for row, value in zip(mine, steered, strict=True)}
            texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens, _ in replies]
            targets = [circuit.names[e] for e, _ in cells]
            judged = [judge.judge(texts, targets) for judge in judges]
            near = relevance([item.user] * len(texts), texts)
            for row, (e, scale) in enumerate(cells):
                tokens, cut = replies[row]
                rows.append(
                    Row(
                        Path(source).name,
                        item.id,
                        item.group,
                        circuit.names[e],
                        scale,
                        judged[0][row].label,
                        judged[1][row].label,
                        text_metrics(texts[row], tokens).repetition,
                        float(np.exp(nll[row])),
                        float(near[row]),
                        cut,
                        texts[row],
                    )
                )
        args.cache.write_text(json.dumps(prompted))
        if args.replies:
            with args.replies.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(labelled(row)) + "\n" for row in rows if row.text)
        show(source, rows, args.lambdas, circuit.names)
    if args.replies and args.prompted:
        with args.replies.open("a", encoding="utf-8") as file:
            for item in items:
                for name in circuit.names:
                    text = tokenizer.decode(prompted[_key(style.name, item, name)], skip_special_tokens=True).strip()
                    line = {"text": text, "label": name, "group": item.group, "register": f"prompted {style.name}"}
                    file.write(json.dumps(line) + "\n" if text else "")


def labelled(row: Row) -> dict[str, str]:
    """A line for `emovllm judge-benchmark`; each circuit and lambda is a register."""
    return {
        "text": row.text,
        "label": row.emotion,
        "group": row.group,
        "register": f"{row.circuit} {row.scale:g}",
    }


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
    near = np.mean([row.relevance for row in rows])
    different = openings([(row.emotion, row.text) for row in rows])
    return (
        f"local {local:.0%}, lexicon {lexicon:.0%}, repetition {repetition:.1%}, fluency {fluency:.2f}, "
        f"relevance {near:.2f}, cut {cut:.0%}, openings {different:.0%}"
    )


if __name__ == "__main__":
    main()
