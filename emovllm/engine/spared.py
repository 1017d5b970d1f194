"""What of a request's reply is spared, as far as vLLM's requests and prompts tell it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from emovllm.emotion import Wire
from emovllm.engine.markers import reasoning_parser_of, tokenizer_of
from emovllm.engine.parsers import Opening
from emovllm.engine.patching import patches
from emovllm.engine.settings import settings_of
from emovllm.phases import BITS
from emovllm.sparing import Form

# What a request gave its chat template, while the engine takes it; None where vLLM does not tell.
_template: ContextVar[Mapping[str, Any] | None] = ContextVar("emotion_template", default=None)


def form_of(params: Any, request: Any = None) -> Form:
    """params: vLLM's for sampling or beams. request: of a server; None from Python, where nobody knows of tools."""
    choice = getattr(request, "tool_choice", None)
    tools = bool(getattr(request, "tools", None)) and choice != "none"
    # A choice of certain tools may leave open whether one is called.
    forced = tools and choice not in (None, "auto") and _field(choice, "mode") != "auto"
    guide = getattr(params, "structured_outputs", None)
    # Where tools are offered, vLLM guides what follows the beginning of a call, and nothing else.
    of_calls = tools and not forced and getattr(guide, "structural_tag", None) is not None
    return Form(tools, forced, guide is not None and not of_calls)


def _field(choice: Any, name: str) -> Any:
    return choice.get(name) if isinstance(choice, Mapping) else getattr(choice, name, None)


# The chat's own are in no other argument, and a parser goes by them.
@patches("vllm.v1.engine.async_llm.AsyncLLM.add_request")
async def keeping_template(add_request: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    given = kwargs.get("reasoning_parser_kwargs") or {}
    token = _template.set(given.get("chat_template_kwargs"))
    try:
        return await add_request(self, *args, **kwargs)
    finally:
        _template.reset(token)


class Beginnings:
    """Which phases the prompts of one engine leave open."""

    def __init__(self, vllm_config: Any) -> None:
        settings, name = settings_of(vllm_config), reasoning_parser_of(vllm_config)
        thinks = settings is not None and "thinking" in settings.markers
        self._opening = Opening(name, tokenizer_of(vllm_config)) if name and thinks else None

    def placed(self, wire: Wire, request: Any) -> Wire:
        """The emotion of a request, with what its prompt leaves open. Raises: VLLMValidationError."""
        from vllm.exceptions import VLLMValidationError

        if not wire.muted or self._opening is None:
            return wire
        tokens = request.prompt_token_ids
        if tokens is None:
            raise VLLMValidationError(
                "whether a prompt of embeddings has begun to think cannot be told; leave out emotion_scope answer, and "
                'set "emotion_mute": []',
                parameter="emotion_scope",
            )
        thinks = self._opening(tokens[: wire.prompt_length(len(tokens))], _template.get())
        return wire._replace(within=BITS["thinking"] if thinks else 0)
