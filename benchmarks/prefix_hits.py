#!/usr/bin/env python3
"""How much of their prompts conversations find in vLLM's prefix cache, by how an emotion is asked for.

    scripts/env python benchmarks/prefix_hits.py [--out DIR]       # prefix_hits.md and prefix_hits.png

Conversations of random tokens take turns on one server, or on several behind a router. Blocks are hashed, found, kept
and evicted by vLLM's own cache manager, in whose hashes the scheduler of emovllm puts the emotion; no model computes.
The same conversations are held in three ways: the emotion is a field of the request, its own system prompt, or nothing.
A number is the share of all prompts' tokens that were in the cache. The same numbers on each machine.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emovllm.emotion import KEY, Wire

NAMES = ("anger", "sadness", "happiness", "fear", "surprise", "disgust", None)
WAYS = ("a field (emovllm)", "its own system prompt", "no emotions at all")
ROUTES = ("round robin", "by conversation", "longest cached prefix")
BLOCK = 16
# Tokens of a system prompt, of the sentence in it that tells the emotion, of a message and of a reply.
SYSTEM, SENTENCE, MESSAGE, REPLY = 512, 32, 48, 128
CONVERSATIONS, TURNS = 64, 8
VOCABULARY = 30_000
CHANGES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
BLOCKS = (2_000, 3_000, 4_000, 6_000, 8_000, 12_000)
# More than all conversations have.
ENDLESS = 50_000
_COLOURS = ("#0072B2", "#E69F00", "#6e6e6e")


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of a conversation: its emotion, and the tokens of all messages and replies so far, and of its own."""

    conversation: int
    emotion: str | None
    before: tuple[int, ...]
    reply: tuple[int, ...]


def turns(change: float, conversations: int, seed: int = 0) -> Iterator[Turn]:
    """All turns, in the order in which they arrive. change: the probability that a turn has another emotion than the
    one before."""
    draw = random.Random(seed)
    texts: dict[int, list[int]] = {number: [] for number in range(conversations)}
    emotions = {number: draw.choice(NAMES) for number in texts}
    order = [number for number in texts for _ in range(TURNS)]
    draw.shuffle(order)
    for number in order:
        if texts[number] and draw.random() < change:
            emotions[number] = draw.choice([name for name in NAMES if name != emotions[number]])
        message, reply = (draw.choices(range(VOCABULARY), k=length) for length in (MESSAGE, REPLY))
        yield Turn(number, emotions[number], tuple(texts[number] + message), tuple(reply))
        texts[number] += message + reply


class Server:
    """vLLM's cache of one server."""

    def __init__(self, blocks: int) -> None:
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core import kv_cache_utils
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        from emovllm.engine.scheduler import separate_emotions

        separate_emotions.install()
        kv_cache_utils.init_none_hash(sha256)
        self.hasher = kv_cache_utils.get_request_block_hasher(BLOCK, sha256)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        config = KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        )
        self._manager = KVCacheManager(config, 100_000, scheduler_block_size=BLOCK, hash_block_size=BLOCK)

    def cached(self, request: Any) -> int:
        """Tokens of a request that are in the cache."""
        return int(self._manager.get_computed_blocks(request)[1])

    def serve(self, request: Any, reply: tuple[int, ...]) -> None:
        """Takes a request through its prefill and its reply, and leaves its blocks in the cache."""
        found, computed, _ = self._manager.get_computed_blocks(request)
        prompt = request.num_prompt_tokens
        assert self._manager.allocate_slots(request, prompt - computed, computed, found) is not None
        request.num_computed_tokens = prompt
        request.append_output_token_ids(list(reply))
        # The last token is never computed.
        assert self._manager.allocate_slots(request, len(reply) - 1) is not None
        self._manager.free(request)


def hits(
    way: str,
    change: float,
    blocks: int = ENDLESS,
    conversations: int = CONVERSATIONS,
    servers: int = 1,
    route: str = ROUTES[0],
) -> float:
    """The share of prompts' tokens that are in the cache, of [0, 1].

    blocks: of each server's cache.
    """
    fleet = [Server(blocks) for _ in range(servers)]
    # Hashed as by any of them: what vLLM begins its chain of hashes with is of the process.
    hasher = fleet[-1].hasher
    cached = tokens = 0
    for number, turn in enumerate(turns(change, conversations)):
        request = _request(number, turn, way, hasher)
        server = _routed(fleet, route, number, turn, request)
        cached += server.cached(request)
        tokens += request.num_prompt_tokens
        server.serve(request, turn.reply)
    return cached / tokens


def _routed(fleet: list[Server], route: str, number: int, turn: Turn, request: Any) -> Server:
    if route == "longest cached prefix":
        # As a router that reads all servers' events; of equals, by the number of the request.
        order = [(number + offset) % len(fleet) for offset in range(len(fleet))]
        return fleet[max(order, key=lambda index: fleet[index].cached(request))]
    return fleet[(turn.conversation if route == "by conversation" else number) % len(fleet)]


def _request(number: int, turn: Turn, way: str, hasher: Callable[[Any], Any]) -> Any:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    steered = way == WAYS[0] and turn.emotion is not None
    wire = Wire("digest", {turn.emotion or "": 1.0}, "generation") if steered else None
    # Token ids beyond the texts', by emotion: the sentence comes first, as a persona does.
    told = 1 + NAMES.index(turn.emotion) if way == WAYS[1] else 0
    system = [VOCABULARY + told] * SENTENCE + [VOCABULARY] * (SYSTEM - SENTENCE)
    return Request(
        request_id=str(number),
        prompt_token_ids=[*system, *turn.before],
        sampling_params=SamplingParams(max_tokens=REPLY, extra_args={KEY: wire} if wire else None),
        pooling_params=None,
        block_hasher=hasher,
    )


def table(head: str, columns: list[str], rows: dict[str, list[float]]) -> str:
    lines = [f"| {head} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(f'{x:.1%}' for x in row)} |" for name, row in rows.items())])


def draw(path: Path, by_change: dict[str, list[float]], by_blocks: dict[str, list[float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((10, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for colour, way in zip(_COLOURS, WAYS, strict=True):
        left.plot(CHANGES, by_change[way], color=colour, marker="o", markersize=4, label=way)
        right.plot(BLOCKS, by_blocks[way], color=colour, marker="o", markersize=4)
    left.set_title("Prompt tokens found in the cache, endless", loc="left", fontsize=11)
    left.set_xlabel("probability that a turn has another emotion than the last")
    left.set_ylim(0, 1)
    left.legend(frameon=False, title="an emotion is")
    right.set_title("with so many blocks, at a probability of 0.5", loc="left", fontsize=11)
    right.set_xlabel(f"blocks of {BLOCK} tokens")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path())
    out: Path = parser.parse_args().out
    by_change = {way: [hits(way, change) for change in CHANGES] for way in WAYS}
    by_blocks = {way: [hits(way, 0.5, blocks) for blocks in BLOCKS] for way in WAYS}
    by_route = {route: [hits(way, 0.5, ENDLESS, servers=4, route=route) for way in WAYS] for route in ROUTES}
    text = "\n\n".join(
        (
            table("probability of another emotion", [f"{change:g}" for change in CHANGES], by_change),
            table("blocks", [f"{blocks:,}" for blocks in BLOCKS], by_blocks),
            table("4 servers, routed", list(WAYS), by_route),
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "prefix_hits.md").write_text(text + "\n")
    draw(out / "prefix_hits.png", by_change, by_blocks)
    print(text)


if __name__ == "__main__":
    main()
