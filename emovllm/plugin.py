"""The entry point of the group `vllm.general_plugins`."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from importlib.util import find_spec
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
    try:
        vllm_config = create_engine_config(self, *args, **kwargs)
    except ValueError as error:
        if _has_circuit(self.additional_config):
            tell_what_is_missing(self.model, error)
        raise
    if _has_circuit(vllm_config.additional_config):
        from emovllm.engine import config, handshake, registry, requests, shutdown, transport

        circuits = config.configure(vllm_config)
        if circuits is not None:
            name_plugins()
            registry.register(vllm_config, circuits)
            requests.install()
            if config.settings_of(vllm_config).reading is not None:  # type: ignore[union-attr]
                transport.install()
            handshake.install()
            shutdown.watch.install()
    return vllm_config


def _has_circuit(additional: Any) -> bool:
    return isinstance(additional, dict) and additional.get("emovllm") is not None


def tell_what_is_missing(model: str, error: ValueError) -> None:
    """vLLM leaves to its log why it cannot import a class. Raises: Unsupported."""
    if "failed to be inspected" not in str(error) or find_spec("torchvision") is not None:
        return
    from emovllm.errors import Unsupported

    raise Unsupported(
        f"{model}: vLLM cannot import its class of this model. Those of models of text and images need torchvision, "
        "which is not installed here: install the build of it that fits your PyTorch"
    ) from None


def name_plugins() -> None:
    """Has vLLM's servers add our routes, and refuse emotions on routes that would ignore them.

    vLLM adds an endpoint plugin only where VLLM_PLUGINS names it, and then loads no other that is not named. An
    explicit list is kept, and completed.
    """
    named = os.environ.get("VLLM_PLUGINS")
    installed = {point.name for group in _GROUPS for point in importlib.metadata.entry_points(group=group)}
    plugins = {name.strip() for name in named.split(",")} if named is not None else installed
    os.environ["VLLM_PLUGINS"] = ",".join(sorted((plugins | {_NAME}) - {""}))
