"""`emovllm run-batch`: answers an OpenAI Batch file, in one process with vLLM's engine.

Each line is asked of the very application that `emovllm serve` serves, without a network between: it takes what a
client may ask, an emotion included, gives the reply that a client gets, and refuses what the server refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import httpx

from emovllm.emotion import looks_ours
from emovllm.engine.config import KEY
from emovllm.environment import ADMIN_KEY
from emovllm.errors import BatchFileError, EngineDied, Unsupported
from emovllm.progress import Bar
from emovllm_server import serve, starting
from emovllm_server.arguments import parse
from emovllm_server.batch.files import Line, Replies, parse_lines

# What OpenAI's batches may ask of a model that writes.
_URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_TERMINATED = 128 + signal.SIGTERM


def main(argv: Sequence[str]) -> int:
    """Runs a batch. `argv` is what follows `emovllm run-batch`. Returns the exit status."""
    serve.prepare_environment()
    try:
        return _run(argv)
    except (BatchFileError, EngineDied) as error:
        print(f"emovllm: {error}", file=sys.stderr)
        return 2 if isinstance(error, BatchFileError) else 1
    except asyncio.CancelledError:
        return _TERMINATED


def _run(argv: Sequence[str]) -> int:
    ours, args = parse(argv, "run-batch", _add_options)
    if ours.input_file is None or ours.output_file is None:
        raise BatchFileError("give the requests with -i FILE, and where their replies go with -o FILE")
    lines = parse_lines(_read(Path(ours.input_file)), ours.input_file)
    replies = Replies(Path(ours.output_file), lines)
    try:
        if not replies.left:
            print(f"emovllm: {ours.output_file} has a reply to every line of {ours.input_file}", file=sys.stderr)
            return 0
        serve.fill_in(args, ours)
        # Nobody else reaches this server.
        args.api_key = None
        for key in ("VLLM_API_KEY", ADMIN_KEY):
            os.environ.pop(key, None)
        previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            asyncio.run(_run_engine(args, replies))
        finally:
            signal.signal(signal.SIGTERM, previous)
    finally:
        replies.close()
    return 0


def _add_options(parser: Any) -> None:
    """parser: argparse's, or vLLM's."""
    add = parser.add_argument
    add("-i", "--input-file", help="The requests: an OpenAI Batch file.")
    add("-o", "--output-file", help="The replies. Where there are some already, the batch goes on.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BatchFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BatchFileError(f"{path}: not UTF-8 text") from None


def _terminate(*_: object) -> NoReturn:
    raise asyncio.CancelledError


def _vllm_server() -> Any:
    """vLLM's module that builds a server; it has moved in 0.29."""
    try:
        from vllm.entrypoints.launchers.api_server import entry
    except ImportError:
        from vllm.entrypoints.openai import api_server as entry
    return entry


async def _run_engine(args: argparse.Namespace, replies: Replies) -> None:
    from vllm.usage.usage_lib import UsageContext

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    vllm = _vllm_server()
    starting.begin()
    async with vllm.build_async_engine_client(args, usage_context=UsageContext.OPENAI_BATCH_RUNNER) as engine:
        if KEY not in (engine.vllm_config.additional_config or {}):
            raise Unsupported("the engine has no circuit")
        identity = engine_identity(engine.vllm_config)
        replies.check_engine(identity)
        tasks = await engine.get_supported_tasks()
        app = vllm.build_app(args, tasks, engine.model_config)
        await vllm.init_app_state(engine, app.state, args, tasks)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client:
            await _answer_all(engine, client, replies, identity)


async def _answer_all(engine: Any, client: httpx.AsyncClient, replies: Replies, identity: str) -> None:
    left = replies.left
    waiting = iter(left)
    failed = 0
    with Bar("run-batch", len(replies), done=len(replies) - len(left), unit="requests") as bar:

        async def work() -> None:
            nonlocal failed
            task = asyncio.current_task()
            assert task is not None
            for line in waiting:
                response = await answer(line, client)
                # vLLM's handlers answer a cancellation with an error, which is no reply.
                if task.cancelling():
                    raise asyncio.CancelledError
                if engine.errored:
                    raise EngineDied(
                        f"the engine died; {len(replies) - len(replies.left)} of {len(replies)} lines have a reply in "
                        f"{replies.path}, and the same command asks the others"
                    )
                failed += response["status_code"] != 200
                replies.add(line, identity, response)
                bar.advance(note=f"{failed} refused" if failed else "")

        # Enough for full batches, without all of a long file in memory.
        parallel = engine.vllm_config.parallel_config.data_parallel_size
        width = 2 * parallel * engine.vllm_config.scheduler_config.max_num_seqs
        await asyncio.gather(*(work() for _ in range(min(width, len(left)))))


def engine_identity(vllm_config: Any) -> str:
    """What replies depend on, beside their requests: the model and the circuits. Where they lie does not matter."""
    model, ours = vllm_config.model_config, vllm_config.additional_config[KEY]
    settings = {name: value for name, value in ours.items() if name != "circuit"}
    return json.dumps([model.served_model_name, str(model.dtype), model.quantization, settings], default=str)


async def answer(line: Line, client: httpx.AsyncClient) -> dict[str, Any]:
    """The reply to a line: `status_code`, `request_id`, and a `body` of OpenAI's shape, also where it is refused."""
    url, method, body = (line.request.get(name) for name in ("url", "method", "body"))
    if url not in _URLS:
        return _refused("url", f"must be one of {', '.join(_URLS)}")
    if method != "POST":
        return _refused("method", "must be POST")
    if not isinstance(body, dict):
        return _refused("body", "must be an object")
    if misplaced := next((name for name in line.request if looks_ours(name)), None):
        return _refused(misplaced[:60], "belongs into the body")
    if body.get("stream"):
        return _refused("stream", "cannot be used in a batch")
    # Not `json=`, which refuses NaN: that is the server's to do, by its field.
    reply = await client.post(url, content=json.dumps(body), headers={"content-type": "application/json"})
    try:
        answered = reply.json()
    except ValueError:
        answered = _error(reply.status_code, "InternalServerError", None, reply.text[:200])
    return {"status_code": reply.status_code, "request_id": str(uuid.uuid4()), "body": answered}


def _refused(parameter: str, message: str) -> dict[str, Any]:
    error = _error(400, "BadRequestError", parameter, f"{parameter} {message}")
    return {"status_code": 400, "request_id": str(uuid.uuid4()), "body": error}


def _error(code: int, kind: str, parameter: str | None, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
