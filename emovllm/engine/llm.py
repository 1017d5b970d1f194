"""vLLM's `LLM` with a circuit, whatever plugins the environment names."""

from __future__ import annotations

import os
from typing import Any

import vllm

from emovllm import plugin
from emovllm.emotion import KEY
from emovllm.engine.registry import served_by
from emovllm.errors import Unsupported


class LLM(vllm.LLM):
    """vLLM's `LLM`, which steers and reads as it is told, or does not start.

    vLLM leaves out the plugins that VLLM_PLUGINS does not name, and its own `LLM` would then serve the plain model.
    """

    def __init__(
        self, model: str, *args: Any, circuit: Any = None, readout: bool | None = None, probe: Any = None, **kwargs: Any
    ) -> None:
        """Takes all that vLLM's takes.

        Args:
            circuit: a folder or a Hugging Face repository id; or several, by name. Further settings go with
                `additional_config={"emovllm": {...}}`, as may these.
            readout: whether requests may ask what the probe in the circuit's folder reads; a completion of one that did
                has it as `emotion_readout` (`emovllm.readout.Readout`).
            probe: the same with another probe, by its folder; there may be no circuit then.
        Raises: Unsupported, CircuitError.
        """
        additional = dict(kwargs.pop("additional_config", None) or {})
        settings = dict(additional.get(KEY) or {})
        given = {"circuit": circuit, "readout": readout, "probe": probe}
        settings |= {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in given.items()
            if value is not None
        }
        if not settings.get("circuit") and not settings.get("probe"):
            raise Unsupported("no circuit: give circuit=, a folder or a Hugging Face repository id (or probe= alone)")
        plugin.register()
        super().__init__(model, *args, additional_config={**additional, KEY: settings}, **kwargs)
        if served_by(self.llm_engine.vllm_config) is None:
            raise Unsupported("the engine has no circuit")
