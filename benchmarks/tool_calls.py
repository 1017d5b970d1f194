"""Tool calls and thoughts under an emotion: do they come out whole, steered as all else, or spared?

    scripts/env python benchmarks/tool_calls.py --model MODEL --circuit DIR [--strengths 1,1.5] [--out FILE]

Each of the cases of tool_calls.json is asked of `emovllm serve`, with tools and examples of calls: to say a sentence
first and then to call. Small models forget the token that begins a call: by default a chat template of ours has them
write it in words (tool_calls.jinja), which vLLM's parser hunyuan_a13b reads. Each of the questions there is asked to
think before it is answered. Greedily, in an emotion of the circuit's, dealt in turn, and

    plain     without one
    steered   the whole reply: "emotion_mute": [], or the scope generation
    spared    not what is meant for programs: "emotion_mute": ["tools"], or the scope answer

A call is valid where vLLM's parser finds it, and its arguments are JSON that fits the tool's schema; right where it is
the tool that the case is of. A thought is finished where the parser finds both it and an answer after it. A text is
emotional where a blind judge takes it for the emotion that was asked of it; a plain one, of the prompt's. Shares have
Wilson's interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema
from openai import AsyncOpenAI

from emovllm.circuit_files import load_circuit
from emovllm_offline.evaluation.client import Connection
from emovllm_offline.evaluation.local_server import local_server
from emovllm_offline.intervals import wilson
from emovllm_offline.judges.judge import Judge
from emovllm_offline.judges.lexicon import LexiconJudge
from emovllm_offline.judges.local import LocalJudge

# calling, thinking: the system prompts. example: earlier calls, as small models forget the markers without any.
# cases: the tool that each is of, and the request.
PROMPTS = json.loads(Path(__file__).with_suffix(".json").read_text())
TOOLS, CASES, QUESTIONS = PROMPTS["tools"], PROMPTS["cases"], PROMPTS["questions"]
# Granite's thoughts go by text: the models that are measured have no tokens for thinking.
PARSERS = ("--enable-auto-tool-choice", "--reasoning-parser", "granite")
TEMPLATE, TOOL_PARSER = Path(__file__).with_suffix(".jinja"), "hunyuan_a13b"
PLAIN, STEERED, SPARED = "plain", "steered", "spared"


@dataclass(frozen=True)
class Reply:
    """kind: calls or thoughts. emotion: the one dealt, of plain replies too. thought: None where none was found."""

    kind: str
    way: str
    strength: float
    emotion: str
    number: int
    text: str
    thought: str | None
    calls: tuple[tuple[str, str], ...]
    finish: str

    @property
    def condition(self) -> tuple[str, str, float]:
        return self.kind, self.way, self.strength


def bodies(
    emotions: Sequence[str], strengths: Sequence[float], kinds: Sequence[str], limit: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Kind, way, strength, emotion and number of each request, and its body. limit: prompts of each kind."""
    for kind in kinds:
        for number in range(len(CASES) if kind == "calls" else len(QUESTIONS))[:limit]:
            emotion = emotions[number % len(emotions)]
            if kind == "calls":
                user = {"role": "user", "content": CASES[number][1]}
                body = {
                    "messages": [{"role": "system", "content": PROMPTS["calling"]}, *PROMPTS["example"], user],
                    "tools": TOOLS,
                }
                ways: dict[str, dict[str, Any]] = {STEERED: {"emotion_mute": []}, SPARED: {"emotion_mute": ["tools"]}}
            else:
                user = {"role": "user", "content": QUESTIONS[number]}
                body = {"messages": [{"role": "system", "content": PROMPTS["thinking"]}, user]}
                ways = {STEERED: {"emotion_scope": "generation"}, SPARED: {"emotion_scope": "answer"}}
            yield kind, PLAIN, 0.0, emotion, number, {**body, "emotion": "none"}
            for way, fields in ways.items():
                for strength in strengths:
                    told = {"emotion": emotion, "emotion_strength": strength, **fields}
                    yield kind, way, strength, emotion, number, {**body, **told}


async def ask(connection: Connection, requests: Sequence[tuple[Any, ...]], max_tokens: int) -> list[Reply]:
    client = AsyncOpenAI(base_url=connection.base_url, api_key=connection.key, timeout=3600, max_retries=0)
    free = asyncio.Semaphore(connection.concurrency)

    async def one(kind: str, way: str, strength: float, emotion: str, number: int, body: dict[str, Any]) -> Reply:
        async with free:
            raw = await client.post(
                "/chat/completions",
                body={"model": connection.model, "temperature": 0, "max_tokens": max_tokens, **body},
                cast_to=object,
            )
        choice = raw["choices"][0]  # type: ignore[index]
        message = choice["message"]
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        thought = message.get("reasoning") or message.get("reasoning_content")
        text = message["content"] or ""
        return Reply(kind, way, strength, emotion, number, text, thought, tuple(calls), choice["finish_reason"])

    return list(await asyncio.gather(*(one(*request) for request in requests)))


def valid(call: tuple[str, str]) -> bool:
    """Whether a call is of one of the tools, with arguments that fit it."""
    schemas = {of["function"]["name"]: of["function"]["parameters"] for of in TOOLS}
    try:
        jsonschema.validate(json.loads(call[1]), schemas[call[0]])
    except (KeyError, ValueError, jsonschema.ValidationError):
        return False
    return True


def unmarked(text: str) -> tuple[str, str] | None:
    """The first call that a text has as mere JSON, as small models write it; no parser takes it for one."""
    begin = text.find('{"name"')
    if begin < 0:
        return None
    try:
        call = json.JSONDecoder().raw_decode(text, begin)[0]
        return str(call["name"]), json.dumps(call["arguments"])
    except (KeyError, ValueError):
        return None


def _right(reply: Reply, call: tuple[str, str]) -> bool:
    return valid(call) and call[0] == CASES[reply.number][0]


def share(hits: Sequence[bool]) -> str:
    estimate = wilson(sum(hits), len(hits))
    if estimate is None:
        return "-"
    return (
        f"{sum(hits)} of {len(hits)}, {100 * estimate.value:.0f} ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})"
    )


def emotional(judge: Judge, replies: Sequence[Reply], texts: Sequence[str]) -> list[bool]:
    """Whether a judge takes each text for the emotion that was dealt; an empty one for none."""
    return [verdict.match for verdict in judge.judge(list(texts), [reply.emotion for reply in replies])]


def counted(replies: Sequence[Reply], judges: Sequence[Judge]) -> Iterator[str]:
    """The tables of calls and of thoughts."""
    heads = {
        "calls": [
            "valid calls",
            "and the right tool",
            "right, with or without markers",
            "all the user reads",
            "in the arguments' words",
        ],
        "thoughts": ["finished thoughts", "all the user reads", "in the thought"],
    }
    for kind, head in heads.items():
        of_kind = [reply for reply in replies if reply.kind == kind]
        if not of_kind:
            continue
        judged = [f"{what}, {judge.name}" for what in head[-2:] for judge in judges]
        columns = [kind, *head[:-2], *judged, "cut"]
        yield f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}"
        for condition in dict.fromkeys(reply.condition for reply in of_kind):
            own = [reply for reply in of_kind if reply.condition == condition]
            cells = list(_whole(kind, own))
            inside = [_words(reply) if kind == "calls" else reply.thought or "" for reply in own]
            for texts in ([reply.text for reply in own], inside):
                cells += [share(emotional(judge, own, texts)) for judge in judges]
            strength = f" {condition[2]:g}" if condition[2] else ""
            cells.append(share([reply.finish == "length" for reply in own]))
            yield f"| {' | '.join([condition[1] + strength, *cells])} |"


def _whole(kind: str, own: Sequence[Reply]) -> Iterator[str]:
    if kind == "calls":
        fit = [bool(reply.calls) and all(map(valid, reply.calls)) for reply in own]
        yield share(fit)
        yield share([ok and _right(reply, reply.calls[0]) for ok, reply in zip(fit, own, strict=True)])
        firsts = [(*reply.calls, unmarked(reply.text))[0] for reply in own]
        yield share([call is not None and _right(reply, call) for reply, call in zip(own, firsts, strict=True)])
    else:
        yield share([bool(reply.thought and reply.text.strip()) and reply.finish == "stop" for reply in own])


def _words(reply: Reply) -> str:
    """What calls say in their arguments."""
    return " ".join(arguments for _, arguments in reply.calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--circuit", required=True)
    parser.add_argument("--strengths", default="1", help="with commas between")
    parser.add_argument("--emotions", default="", help="with commas between (default: all of the circuit's)")
    parser.add_argument("--kinds", default="calls,thoughts")
    parser.add_argument("--limit", type=int, help="only the first prompts of each kind")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--concurrency", type=int, default=36)
    parser.add_argument("--parser", default=TOOL_PARSER, help="vLLM's parser of tool calls")
    parser.add_argument("--template", default=str(TEMPLATE), help="chat template; '' for the model's own")
    parser.add_argument("--engine-args", default="", help="further arguments of vllm serve")
    parser.add_argument(
        "--out", type=Path, help="where replies go, as JSON lines; those that are there are counted anew"
    )
    options = parser.parse_args()
    if options.out and options.out.exists():
        lines = [json.loads(line) for line in options.out.read_text().splitlines()]
        replies = [Reply(**{**line, "calls": tuple(map(tuple, line["calls"]))}) for line in lines]
    else:
        emotions = options.emotions.split(",") if options.emotions else load_circuit(options.circuit).names
        strengths = [float(strength) for strength in options.strengths.split(",")]
        requests = list(bodies(emotions, strengths, options.kinds.split(","), options.limit))
        log = Path(tempfile.mkdtemp()) / "server.log"
        template = ("--chat-template", options.template) if options.template else ()
        arguments = (*PARSERS, "--tool-call-parser", options.parser, *template, *options.engine_args.split())
        with local_server(
            options.model,
            options.circuit,
            log,
            steering=False,
            concurrency=options.concurrency,
            engine_args=arguments,
        ) as connection:
            replies = asyncio.run(ask(connection, requests, options.max_tokens))
        if options.out:
            options.out.write_text("".join(json.dumps(asdict(reply)) + "\n" for reply in replies))
    names = list(dict.fromkeys(reply.emotion for reply in replies))
    for line in counted(replies, [LocalJudge(names), LexiconJudge(names)]):
        print(line)


if __name__ == "__main__":
    main()
