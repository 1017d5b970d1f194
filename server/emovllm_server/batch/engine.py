"""vLLM's engine and application in this process, which answer a batch file's lines."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from typing import Any

import httpx

from emovllm.emotion import KEY
from emovllm.engine.settings import settings_of
from emovllm.errors import EngineDied, Unsupported
from emovllm.progress import Bar
from emovllm_server.batch.answers import answer
from emovllm_server.batch.files import Replies
from emovllm_server.starting import starting


async def answer_batch(args: argparse.Namespace, replies: Replies) -> None:
    """Answers what has no reply yet. args: vLLM's, as its server takes them.

    Raises: EngineDied, Unsupported; BatchFileError, where the replies that are there are another engine's.
    """
    from vllm.usage.usage_lib import UsageContext

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    vllm = vllm_server()
    context = UsageContext.OPENAI_BATCH_RUNNER
    with starting():
        async with vllm.build_async_engine_client(args, usage_context=context) as engine:
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


def vllm_server() -> Any:
    """vLLM's module that builds a server; it has moved in 0.29."""
    try:
        from vllm.entrypoints.launchers.api_server import entry
    except ImportError:
        from vllm.entrypoints.openai import api_server as entry
    return entry


def engine_identity(vllm_config: Any) -> str:
    """What replies depend on, beside their requests: the model, the circuits and what is read, wherever those lie."""
    model, ours = vllm_config.model_config, settings_of(vllm_config)
    assert ours is not None
    settings = ours.model_dump(mode="json", exclude={"circuit", "probe", "playground"})
    return json.dumps([model.served_model_name, str(model.dtype), model.quantization, settings], default=str)


async def _answer_all(engine: Any, client: httpx.AsyncClient, replies: Replies, identity: str) -> None:
    left = replies.left
    waiting = iter(left)
    with Bar("run-batch", len(replies), done=len(replies) - len(left), unit="requests") as bar:

        async def work() -> None:
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
                replies.add(line, identity, response)
                refused = replies.refusals.total()
                bar.advance(note=f"{refused} refused" if refused else "")

        # Enough for full batches, without all of a long file in memory.
        parallel = engine.vllm_config.parallel_config.data_parallel_size
        width = 2 * parallel * engine.vllm_config.scheduler_config.max_num_seqs
        await asyncio.gather(*(work() for _ in range(min(width, len(left)))))
