"""What `emovllm serve` does with few cores: all of them for the model, or one left to the front end, as vLLM has it.

    python benchmarks/serve_cores.py [--rounds 5] [--clients 1,8,64] [serve's arguments ...]

Two servers stay alive side by side, one of each kind. In each round every number of clients asks each server, in random
order, each client one request after another; ratios are paired within rounds. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai

from emovllm.environment import reach_loopback_directly, without_admin_key
from emovllm.progress import Bar
from emovllm_server.bench.machine import describe
from emovllm_server.bench.ratios import ratio

# VLLM_CPU_NUM_OF_RESERVED_CPU of each server.
KINDS = {"all cores": "0", "one reserved": "1"}
EMOTIONS = (None, "anger", "sadness", "happiness", "fear", "surprise", "disgust")
MESSAGE = "Number {}: my neighbour borrowed my bike and brought it back with a flat tyre. What do you say?"
TOKENS = 64
FIGURES = (("tokens_per_s", "tokens/s", 1.0), ("ttft", "TTFT p50, ms", 1e3), ("tpot", "TPOT p50, ms", 1e3))


@dataclass(frozen=True)
class Figures:
    tokens_per_s: float
    ttft: float  # s, the median over requests
    tpot: float  # s, the median over requests


async def load(url: str, model: str, clients: int, seed: int) -> Figures:
    """`clients` at once, each with two requests, or eight where it is alone."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    firsts: list[float] = []
    rests: list[float] = []

    async def ask(number: int) -> None:
        begun = time.perf_counter()
        arrivals = []
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": MESSAGE.format(seed * 10_000 + number)}],
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            extra_body={"emotion": EMOTIONS[number % len(EMOTIONS)], "ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content is not None:
                arrivals.append(time.perf_counter())
        firsts.append(arrivals[0] - begun)
        rests.append((arrivals[-1] - arrivals[0]) / (TOKENS - 1))

    each = 8 if clients == 1 else 2

    async def work(first: int) -> None:
        for number in range(each):
            await ask(first * each + number)

    begun = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(clients)))
    seconds = time.perf_counter() - begun
    await client.close()
    return Figures(clients * each * TOKENS / seconds, statistics.median(firsts), statistics.median(rests))


def start(kind: str, port: int, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("emovllm")), "serve", "--port", str(port), *arguments]
    environment = {**without_admin_key(), "VLLM_CPU_NUM_OF_RESERVED_CPU": KINDS[kind]}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"the server did not start; see {log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", default="1,8,64")
    args, arguments = parser.parse_known_args()
    reach_loopback_directly()
    clients = [int(number) for number in args.clients.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="serve-cores-"))
    found: dict[tuple[str, int], list[Figures]] = {(kind, count): [] for kind in KINDS for count in clients}
    servers = {}
    try:
        for number, kind in enumerate(KINDS):
            servers[kind] = start(kind, 8600 + number, arguments, folder / f"{number}.log")
        urls = {kind: f"http://127.0.0.1:{8600 + number}" for number, kind in enumerate(KINDS)}
        model = httpx.get(f"{urls['all cores']}/v1/models").json()["data"][0]["id"]
        for url in urls.values():
            asyncio.run(load(url, model, 8, 0))
        order = random.Random(0)
        with Bar("serve-cores", args.rounds * len(found), unit="measurements") as bar:
            for number in range(1, args.rounds + 1):
                for kind, count in order.sample(list(found), len(found)):
                    found[kind, count].append(asyncio.run(load(urls[kind], model, count, number)))
                    bar.advance(note=f"{kind}, {count} clients")
    finally:
        for process in servers.values():
            process.terminate()
            process.wait()
    print(f"{dict(describe())}, rounds: {args.rounds}\n")
    print("| clients | figure | one reserved | all cores | ratio |\n| --- | --- | ---: | ---: | ---: |")
    for count in clients:
        for name, unit, factor in FIGURES:
            every, reserved = (np.array([getattr(f, name) for f in found[kind, count]]) * factor for kind in KINDS)
            paired = ratio({"0": list(np.log(every / reserved))})
            print(
                f"| {count} | {unit} | {np.exp(np.log(reserved).mean()):.4g} | {np.exp(np.log(every).mean()):.4g} "
                f"| {paired.mean:.3f} [{paired.low:.3f}, {paired.high:.3f}] |"
            )


if __name__ == "__main__":
    main()
