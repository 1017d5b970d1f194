"""The entry point of the group `vllm.general_plugins`."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

from emovllm.engine.patching import patches

_NAME = "emovllm"
# Those that vLLM loads when VLLM_PLUGINS is not set.
_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)


def register() -> None:
    """Called by vLLM in every process, possibly more than once.

    It wraps one function, which reads the configuration: where no circuit is configured, nothing else is touched or
    imported. Engine and worker processes need no more: the configuration names our classes.
    """
    configure.install()


@patches("vllm.engine.arg_utils.EngineArgs.create_engine_config")
def configure(create_engine_config: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    vllm_config = create_engine_config(self, *args, **kwargs)
    additional = vllm_config.additional_config
    if isinstance(additional, dict) and additional.get("emovllm") is not None:
        from emovllm.engine import config, handshake, registry, requests, shutdown

        circuits = config.configure(vllm_config)
        if circuits is not None:
            name_plugins()
            registry.register(vllm_config, circuits)
            requests.install()
            handshake.install()
            shutdown.watch.install()
    return vllm_config


def name_plugins() -> None:
    """Has vLLM's servers add our routes, and refuse emotions on routes that would ignore them.

    vLLM adds an endpoint plugin only where VLLM_PLUGINS names it, and then loads no other that is not named. An
    explicit list is kept, and completed.
    """
    named = os.environ.get("VLLM_PLUGINS")
    installed = {point.name for group in _GROUPS for point in importlib.metadata.entry_points(group=group)}
    plugins = {name.strip() for name in named.split(",")} if named is not None else installed
    os.environ["VLLM_PLUGINS"] = ",".join(sorted((plugins | {_NAME}) - {""}))
