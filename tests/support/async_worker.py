"""The engine client of vLLM's servers in a process of its own: `python async_worker.py '{"model": ...}'`.

Driven like worker.py, without adapters and images. A request's parameters may hold `data_parallel_rank`, the engine
that is to take it; the metrics are {"name/engine": value}. {"beams": {"prompt", "fields", "width", "max_tokens"}}
answers {"beams": [[token ids, cumulative logprob]]}, by the beam search of vLLM's servers. {"admin": ["load", name,
path]} or ["unload", name] answers {"refusal": text}, empty where it was done; with "requests" beside it, these are
under way.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from worker import completion, fork_processes


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    asyncio.run(serve(replies))


async def serve(replies: Any) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    fork_processes()
    engine = None
    try:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**json.loads(sys.argv[1])))
        # As a server does before its first request.
        await engine.get_supported_tasks()
        replies.write(json.dumps({"ready": True}) + "\n")
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            if "beams" in request:
                reply = await beams(engine, **request["beams"])
            elif "admin" in request:
                reply = await administer(engine, request["admin"], request.get("requests"))
            else:
                reply = await answer(engine, **request)
            replies.write(json.dumps(reply) + "\n")
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise SystemExit(1) from error
    finally:
        if engine is not None:
            engine.shutdown()


async def answer(
    engine: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    params: list[dict[str, Any]],
    loras: list[str | None],
    images: list[int | None],
    max_tokens: int,
) -> dict[str, Any]:
    from vllm.v1.metrics.reader import get_metrics_snapshot

    assert not any([*loras, *images]), "this worker takes neither adapters nor images"
    outputs = await asyncio.gather(
        *(
            last_output(engine, ids, asked, dict(changes), max_tokens)
            for ids, asked, changes in zip(prompts, fields, params, strict=True)
        )
    )
    return {
        "outputs": [{**completion(output.outputs[0]), "others": []} for output in outputs],
        "metrics": {
            f"{metric.name}/{metric.labels['engine']}": metric.value
            for metric in get_metrics_snapshot()
            if hasattr(metric, "value") and "engine" in metric.labels
        },
    }


_admins: dict[Any, Any] = {}


async def administer(engine: Any, asked: list[str], requests: dict[str, Any] | None) -> dict[str, Any]:
    from emovllm.engine.admin import Admin
    from emovllm.engine.registry import served_by
    from emovllm.errors import AdminError

    if engine not in _admins:
        _admins[engine] = Admin(engine, served_by(engine.vllm_config))
    running = asyncio.create_task(answer(engine, **requests)) if requests is not None else None
    while running is not None and not engine.output_processor.has_unfinished_requests():
        await asyncio.sleep(0.001)
    refusal = ""
    try:
        await getattr(_admins[engine], asked[0])(*asked[1:])
    except AdminError as error:
        refusal = str(error)
    done = running is not None and running.done()
    return {"refusal": refusal, "waited": done, **(await running if running is not None else {})}


async def beams(engine: Any, prompt: list[int], fields: dict[str, Any], width: int, max_tokens: int) -> dict[str, Any]:
    from types import SimpleNamespace

    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.inputs import tokens_input

    tokenizer = SimpleNamespace(eos_token_id=-1, decode=lambda *_, **__: "")
    serving = type("Serving", (BeamSearchOnlineMixin,), {})()
    serving.engine_client = engine
    serving.renderer = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    request = CompletionRequest(model="tiny", prompt=prompt, use_beam_search=True, n=width, ignore_eos=True, **fields)
    params = request.to_beam_search_params(max_tokens, {})
    async for output in serving.beam_search(prompt=tokens_input(prompt), request_id="beams", params=params):
        last = output
    # Later beams begin with the prompt's tokens in some versions; the replies are the last ones in all.
    return {"beams": [[list(beam.token_ids)[-max_tokens:], beam.cumulative_logprob] for beam in last.outputs]}


_requests = 0


async def last_output(
    engine: Any, prompt: list[int], fields: dict[str, Any], changes: dict[str, Any], max_tokens: int
) -> Any:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    global _requests
    _requests += 1
    rank = changes.pop("data_parallel_rank", None)
    sampling = SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=0,
        extra_args=fields or None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **changes,
    )
    async for output in engine.generate(
        TokensPrompt(prompt_token_ids=prompt), sampling, str(_requests), data_parallel_rank=rank
    ):
        last = output
    return last


if __name__ == "__main__":
    main()
