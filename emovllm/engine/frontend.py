"""The front end: requests are checked before they are taken, and engines before they serve.

Installed only in a process that configures a circuit. Requests to an engine without one pass untouched.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emovllm import __version__
from emovllm.circuit import Circuit, CircuitSpec, site_key
from emovllm.emotion import FIELDS, METHODS, Emotion, EmotionError, Method, resolve
from emovllm.engine.config import KEY, Unsupported, settings_of
from emovllm.steering import layer_key, steered_layers


@dataclass(frozen=True, slots=True)
class Served:
    """A circuit that engines of this process serve."""

    spec: CircuitSpec
    digest: str
    sites: frozenset[str]
    methods: tuple[Method, ...] = ("circuit",)


_served: dict[tuple[str, bool], Served] = {}  # by digest, and whether with steering


def serve(circuit: Circuit, steering: bool = False) -> None:
    """Makes this process take requests with an emotion for engines of this circuit. Idempotent."""
    digest = circuit.digest()
    sites = frozenset(site_key(kind, layer) for kind, layer in circuit.sites())
    if steering:
        sites |= {layer_key(layer) for layer in steered_layers(circuit.spec.model.num_hidden_layers)}
    _served.pop((digest, steering), None)
    _served[digest, steering] = Served(circuit.spec, digest, sites, METHODS if steering else ("circuit",))
    _wrap_protocols()
    _wrap_input_processor()
    _wrap_engines()


def served_by(vllm_config: Any) -> Served | None:
    """The circuit of an engine, or None where it has none. Raises: Unsupported."""
    settings = settings_of(vllm_config)
    if settings is None:
        return None
    if (settings.digest, settings.steering) not in _served:
        # A configuration that our plugin did not see names none of our classes: its engine would not steer.
        raise Unsupported("the configuration names a circuit and was not made by EngineArgs.create_engine_config")
    return _served[settings.digest, settings.steering]


def check(fields: Mapping[str, Any], served: Served) -> Emotion | None:
    """`resolve`, raising vLLM's error, which its server turns into a 400 in OpenAI's shape."""
    from vllm.exceptions import VLLMValidationError

    try:
        return resolve(fields, served.spec, served.methods)
    except EmotionError as error:
        raise VLLMValidationError(str(error), parameter=error.parameter) from None


def _wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if hasattr(original, "_emovllm"):
        return
    wrapped = functools.wraps(original)(make(original))
    wrapped._emovllm = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)


def _wrap_protocols() -> None:
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.entrypoints.generate.beam_search.utils import BeamSearchSequence
    from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        _wrap(request, "to_sampling_params", _with_emotion)
        if hasattr(request, "to_beam_search_params"):
            _wrap(request, "to_beam_search_params", _with_beam_emotion)
    _wrap(BeamSearchOnlineMixin, "beam_search", _with_beams_of_prompt)
    _wrap(BeamSearchSequence, "get_prompt", _keeping_prompt_len)
    _wrap(BatchChatCompletionRequest, "to_chat_completion_request", _keeping_emotion)


def _asked(request: Any) -> dict[str, Any]:
    """The emotion fields of an HTTP request: top level, or in `vllm_xargs`, where OpenAI's batch files may put them."""
    top = {name: value for name, value in (request.model_extra or {}).items() if name in FIELDS}
    xargs = {name: value for name, value in (request.vllm_xargs or {}).items() if name in FIELDS}
    return {**xargs, **top}


def _with_emotion(to_sampling_params: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = to_sampling_params(self, *args, **kwargs)
        asked = _asked(self)
        if asked:
            # A server process serves one engine: the circuit configured last. Engines check again.
            check(asked, next(reversed(_served.values())))
            params.extra_args = {**(params.extra_args or {}), **asked}
        return params

    return wrapped


def _with_beam_emotion(to_beam_search_params: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = to_beam_search_params(self, *args, **kwargs)
        asked = _asked(self)
        if asked:
            check(asked, next(reversed(_served.values())))
            params.emotion = asked
        return params

    return wrapped


def _with_beams_of_prompt(beam_search: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, prompt: Any, request_id: str, params: Any, **kwargs: Any) -> Any:
        asked = getattr(params, "emotion", None)
        # vLLM itself refuses prompts without token ids.
        if asked is not None and "prompt_token_ids" in prompt:
            prompt = {**prompt, KEY: {"asked": asked, "prompt_len": len(prompt["prompt_token_ids"])}}
        return beam_search(self, prompt, request_id, params, **kwargs)

    return wrapped


def _keeping_prompt_len(get_prompt: Callable[..., Any]) -> Callable[..., Any]:
    # Each step of a beam is a new request, whose prompt holds generated tokens.
    def wrapped(self: Any) -> Any:
        prompt = get_prompt(self)
        if KEY in self.orig_prompt:
            prompt[KEY] = self.orig_prompt[KEY]
        return prompt

    return wrapped


def _keeping_emotion(to_chat_completion_request: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        single = to_chat_completion_request(self, *args, **kwargs)
        for name, value in (self.model_extra or {}).items():
            if name in FIELDS:
                single.model_extra[name] = value
        return single

    return wrapped


def _wrap_input_processor() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    _wrap(InputProcessor, "process_inputs", _resolving)
    InputProcessor.assign_request_id = staticmethod(_refusing_unresolved(InputProcessor.assign_request_id))


def _resolving(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        served = served_by(self.vllm_config)
        params = request.sampling_params
        prompt = kwargs["prompt"] if "prompt" in kwargs else args[1]
        beam = prompt.get(KEY) if isinstance(prompt, dict) else None
        if served is None or params is None or not (params.extra_args or beam):
            return request
        _resolve_params(params, served, bool(request.resumable), **(beam or {}))
        return request

    return wrapped


def _refusing_unresolved(assign_request_id: Callable[..., Any]) -> Callable[..., Any]:
    """Engines also take requests made elsewhere, which no input processor has seen."""
    if hasattr(assign_request_id, "_emovllm"):
        return assign_request_id

    @functools.wraps(assign_request_id)
    def wrapped(request: Any) -> Any:
        extra = (request.sampling_params.extra_args if request.sampling_params is not None else None) or {}
        # Nor does an engine without a circuit, in a process that has another with one, ignore them.
        if any(extra.get(name) is not None for name in FIELDS):
            raise ValueError("an EngineCoreRequest's emotion was not resolved; pass a prompt and sampling parameters")
        return assign_request_id(request)

    wrapped._emovllm = True  # type: ignore[attr-defined]
    return wrapped


def _resolve_params(
    params: Any, served: Served, resumable: bool, asked: Mapping[str, Any] | None = None, prompt_len: int | None = None
) -> None:
    """Replaces what was asked in `extra_args` by what it resolves to: engine and workers read that alone."""
    from vllm.exceptions import VLLMValidationError

    extra = {**(params.extra_args or {}), **(asked or {})}
    if KEY in extra:
        raise VLLMValidationError(f"extra_args[{KEY!r}] is reserved; use emotion", parameter=KEY)
    emotion = check(extra, served)
    if emotion is not None and resumable:
        raise VLLMValidationError("emotion cannot be combined with a resumable session", parameter="emotion")
    rest = {name: value for name, value in extra.items() if name not in FIELDS}
    if emotion is not None:
        rest[KEY] = emotion.to_wire(served.digest)
        if prompt_len is not None:
            rest[KEY]["prompt_len"] = prompt_len
    params.extra_args = rest or None


def _wrap_engines() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    # Both servers and `LLM` ask an engine for its tasks before the first request.
    _wrap(AsyncLLM, "get_supported_tasks", _shaking_hands_async)
    _wrap(LLMEngine, "get_supported_tasks", _shaking_hands)


def _shaking_hands_async(get_supported_tasks: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapped(self: Any) -> Any:
        served = served_by(self.vllm_config)
        if served is not None and not getattr(self, "_emotion_checked", False):
            # Of several engines (data parallelism), `collective_rpc` answers for the first alone.
            core = self.engine_core
            asked = [
                core._call_utility_async("collective_rpc", "emotion_report", None, (), None, engine=engine)
                for engine in core.core_engines
            ]
            for reports in await asyncio.gather(*asked):
                check_workers(reports, served)
            self._emotion_checked = True
        return await get_supported_tasks(self)

    return wrapped


def _shaking_hands(get_supported_tasks: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any) -> Any:
        served = served_by(self.vllm_config)
        if served is not None and not getattr(self, "_emotion_checked", False):
            check_workers(self.collective_rpc("emotion_report"), served)
            self._emotion_checked = True
        return get_supported_tasks(self)

    return wrapped


def check_workers(reports: list[dict[str, Any]], served: Served) -> None:
    """The start-up handshake: all workers run this code and this circuit, and together hold each of its sites.

    Raises: Unsupported.
    """
    for report in reports:
        if report["version"] != __version__:
            raise Unsupported(f"a worker runs emovllm {report['version']}, the server {__version__}")
        if report["digest"] != served.digest:
            raise Unsupported("a worker holds another circuit than the server")
    missing = served.sites - {site for report in reports for site in report["sites"]}
    if missing:
        raise Unsupported(
            f"the model has no layer to steer for {len(missing)} of the circuit's {len(served.sites)} sites "
            f"({', '.join(sorted(missing)[:4])}): experts of a mixture have no such site, and other names than "
            "mlp.down_proj and self_attn.o_proj may be missing in emovllm/sites.py"
        )
