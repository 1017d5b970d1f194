"""`emovllm run-batch`: answers an OpenAI Batch file, in one process with vLLM's engine.

Each line is asked of the very application that `emovllm serve` serves, without a network between: it takes what a
client may ask, an emotion included, gives the reply that a client gets, and refuses what the server refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from emovllm.environment import ADMIN_KEY
from emovllm.errors import BatchFileError, OptionsError
from emovllm.models import NAME
from emovllm_server import serve
from emovllm_server.arguments import parse
from emovllm_server.batch.engine import answer_batch
from emovllm_server.batch.files import Replies, parse_lines
from emovllm_server.batch.transfer import Output, public_name, read

_TERMINATED = 128 + signal.SIGTERM


def main(argv: Sequence[str]) -> int:
    """Runs a batch. `argv` is what follows `emovllm run-batch`. Returns the exit status: 1 where every line was
    refused."""
    serve.prepare_environment()
    # Python's trackers of shared memory would have the last word, of what vLLM's engine held when it was ended: they
    # free it all the same.
    kept = [os.environ["PYTHONWARNINGS"]] if os.environ.get("PYTHONWARNINGS") else []
    os.environ["PYTHONWARNINGS"] = ",".join([*kept, "ignore::UserWarning:multiprocessing.resource_tracker"])
    try:
        return _run(argv)
    except asyncio.CancelledError:
        return _TERMINATED


def _run(argv: Sequence[str]) -> int:
    options, args = parse(argv, "run-batch", add_options)
    if options.input_file is None or options.output_file is None:
        raise BatchFileError("give the requests with -i FILE, and where their replies go with -o FILE")
    source = public_name(options.input_file)
    lines = parse_lines(read(options.input_file), source)
    output = Output(options.output_file, options.output_tmp_dir)
    replies = Replies(output.path, lines)
    model = (args.served_model_name or [args.model_tag or NAME])[0]
    try:
        if replies.left:
            serve.fill_in(args, options)
            with _metrics(options, args):
                _answer(args, replies)
        else:
            print(f"emovllm: {replies.path} has a reply to every line of {source}", file=sys.stderr)
    finally:
        replies.close()
    output.deliver()
    return _conclude(replies, public_name(options.output_file), model)


def add_options(parser: Any) -> None:
    """parser: argparse's, or vLLM's. These are those of `vllm run-batch` that `vllm serve` lacks."""
    add = parser.add_argument
    add("-i", "--input-file", help="The requests: an OpenAI Batch file, or its URL.")
    add(
        *("-o", "--output-file"),
        help="The replies: a file, or a URL that takes it by PUT. Where the file has some already, the batch goes on.",
    )
    add(
        "--output-tmp-dir",
        help="The folder of the replies that are on their way to a URL, from where an interrupted batch goes on.",
    )
    add(
        "--enable-metrics",
        action=argparse.BooleanOptionalAction,
        help="Serve Prometheus' metrics at --host and --port while the batch runs.",
    )
    add("--url", help="The host of the metrics; --host goes before it (default: 0.0.0.0).")


def _answer(args: argparse.Namespace, replies: Replies) -> None:
    # Nobody else reaches this server.
    args.api_key = None
    for key in ("VLLM_API_KEY", ADMIN_KEY):
        os.environ.pop(key, None)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        asyncio.run(answer_batch(args, replies))
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _metrics(options: argparse.Namespace, args: argparse.Namespace) -> Iterator[None]:
    """Serves /metrics for the length of the block, where that is asked for. Raises: OptionsError."""
    if not options.enable_metrics:
        yield
        return
    from prometheus_client import start_http_server

    host = args.host or options.url or "0.0.0.0"
    try:
        server, _ = start_http_server(args.port, host)
    except OSError as error:
        raise OptionsError(f"--enable-metrics at {host}:{args.port}: {error.strerror}; give another --port") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _conclude(replies: Replies, place: str, model: str) -> int:
    """Tells how many lines were refused, and why most of them. Returns: the exit status."""
    refused = replies.refusals.total()
    if not refused:
        return 0
    (status, message), count = replies.refusals.most_common(1)[0]
    # What OpenAI's or another server's model is called here is the commonest of all reasons.
    hint = f" (the model here is called {model}; --served-model-name calls it otherwise)" if status == 404 else ""
    others = f"; {refused - count} for other reasons, see {place}" if refused > count else ""
    print(f"emovllm: {refused} of {len(replies)} lines were refused: {message}{hint}{others}", file=sys.stderr)
    return int(refused == len(replies))


def _terminate(*_: object) -> NoReturn:
    raise asyncio.CancelledError
