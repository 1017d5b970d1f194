"""A real server, started once by the command that the README gives."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import openai
import pytest

from support import groups, tiny
from support.servers import BIN, Server
from support.warm import COLD


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Server]:
    """`serve(command, env=...)`: starts a server, without waiting for it; all end with the group of tests."""
    folder = tmp_path_factory.mktemp("servers")
    numbers = itertools.count()

    def start(command: list[str], env: dict[str, str] | None = None) -> Server:
        server = Server(command, folder / f"{next(numbers)}.log", env)
        groups.until_the_group_ends(server)
        return server

    return start


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server]) -> Server:
    """`emovllm serve`, with the default model and its circuit."""
    # In float32 a reply does not depend on what else is in the batch, nor on the processor's kernels.
    command = [str(BIN / "emovllm"), "serve", "--enforce-eager", "--max-model-len", "1024", "--dtype", "float32"]
    command += ["--readout", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    # What an emotion cannot say in a form would be white space, until the limit.
    compact = {"backend": "xgrammar", "disable_any_whitespace": True}
    return serve([*command, "--structured-outputs-config", json.dumps(compact)], COLD).wait()


@pytest.fixture(scope="session")
def tiny_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Serves a tiny model in float32, with a strong circuit: replies do not depend on their batch. Those of 100 tokens
    and more are flagged."""
    return [*tiny.command(tmp_path_factory.mktemp("tiny")), "--guard", "anger>1e-06x100:flag"]


@pytest.fixture(scope="session")
def tiny_server(serve: Callable[..., Server], tiny_command: list[str]) -> Server:
    # A parser that takes a reply without its markers for an answer.
    return serve([*tiny_command, "--reasoning-parser", "granite", "--playground"]).wait()


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id
