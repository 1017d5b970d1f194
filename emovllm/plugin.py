"""The entry point of the group `vllm.general_plugins`."""

from __future__ import annotations

import functools
from typing import Any


def register() -> None:
    """Called by vLLM in every process, possibly more than once.

    It wraps one function, which reads the configuration: where no circuit is configured, nothing else is touched or
    imported. Engine and worker processes need no more: the configuration names our classes.
    """
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_engine_config
    if hasattr(original, "_emovllm"):
        return

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        additional = vllm_config.additional_config
        if isinstance(additional, dict) and additional.get("emovllm") is not None:
            from emovllm.engine import config, frontend

            circuit = config.configure(vllm_config)
            if circuit is not None:
                frontend.serve(circuit)
        return vllm_config

    create_engine_config._emovllm = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config  # type: ignore[method-assign]
