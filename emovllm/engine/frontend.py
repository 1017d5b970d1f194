"""The front end: requests are checked before they are taken, and engines before they serve.

Installed only in a process that configures a circuit. Requests to an engine without one pass untouched.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from emovllm import __version__
from emovllm.catalogue import Applied, Catalogue, Policy, Served
from emovllm.circuit import Circuit
from emovllm.emotion import FIELDS, METHODS, NESTS, refuse_misplaced
from emovllm.engine.config import KEY, settings_of
from emovllm.errors import EmotionError, Reason, Unsupported

_catalogues: dict[str, Catalogue] = {}  # by their settings


def serve(vllm_config: Any, circuits: Mapping[str, Circuit]) -> None:
    """Makes this process take requests with an emotion for engines of this configuration. Idempotent.

    Raises: Unsupported where the policy names what no circuit has.
    """
    settings = settings_of(vllm_config)
    assert settings is not None
    key = settings.model_dump_json()
    catalogue = _catalogues.pop(key, None)
    if catalogue is None:
        policy = Policy(**{name: getattr(settings, name) for name in Policy.model_fields})
        catalogue = Catalogue.of(policy, circuits, METHODS if settings.steering else ("circuit",))
        try:
            catalogue.check_policy()
        except EmotionError as error:
            raise Unsupported(str(error)) from None
    _catalogues[key] = catalogue
    _wrap_protocols()
    _wrap_input_processor()
    _wrap_engines()


def served_by(vllm_config: Any) -> Catalogue | None:
    """What an engine offers, or None where it has no circuit. Raises: Unsupported."""
    settings = settings_of(vllm_config)
    if settings is None:
        return None
    try:
        return _catalogues[settings.model_dump_json()]
    except KeyError:
        # A configuration that our plugin did not see names none of our classes: its engine would not steer.
        raise Unsupported(
            "the configuration names a circuit and was not made by EngineArgs.create_engine_config"
        ) from None


def served_last() -> Catalogue:
    """A server process serves one engine: what was configured last. Engines check again."""
    return next(reversed(_catalogues.values()))


def check(fields: Mapping[str, Any], catalogue: Catalogue) -> Applied | None:
    """`Catalogue.resolve`, raising vLLM's error, which its server turns into a 400 in OpenAI's shape.

    fields: all that a request has and vLLM does not know.
    """
    from vllm.exceptions import VLLMValidationError

    try:
        refuse_misplaced(fields)
        return catalogue.resolve({name: value for name, value in fields.items() if name in FIELDS})
    except EmotionError as error:
        if (record := current.get()) is not None:
            record.refused = error.reason
        raise VLLMValidationError(str(error), parameter=error.parameter) from None


@dataclass(slots=True)
class Record:
    """What became of one HTTP request's emotion, for whoever answers it."""

    resolved: bool = False
    applied: Applied | None = None
    refused: Reason | None = None


# Set around each HTTP request by the server's middleware; the handler runs in a copy of its context.
current: ContextVar[Record | None] = ContextVar("emotion_record", default=None)


def wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a method by what `make` makes of it. Idempotent."""
    original = getattr(owner, name)
    made = getattr(original, "_emovllm", ())
    if make in made:
        return
    wrapped = functools.wraps(original)(make(original))
    wrapped._emovllm = (*made, make)  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)


def _wrap_protocols() -> None:
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.entrypoints.generate.beam_search.utils import BeamSearchSequence
    from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        wrap(request, "to_sampling_params", _with_emotion)
        if hasattr(request, "to_beam_search_params"):
            wrap(request, "to_beam_search_params", _with_beam_emotion)
    wrap(BeamSearchOnlineMixin, "beam_search", _with_beams_of_prompt)
    wrap(BeamSearchSequence, "get_prompt", _keeping_prompt_len)
    wrap(BatchChatCompletionRequest, "to_chat_completion_request", _keeping_emotion)
    wrap(OpenAIServingModels, "show_available_models", _with_emotion_models)


def _asked(request: Any) -> dict[str, Any]:
    """What vLLM does not know of an HTTP request: top level, or in `vllm_xargs`, where OpenAI's batch files may put an
    emotion."""
    # vLLM knows the names of some, and nothing of what is in them.
    nests = {name: getattr(request, name, None) for name in NESTS}
    top = {name: value for name, value in {**nests, **(request.model_extra or {})}.items() if value is not None}
    # A null counts as not given: it must not hide what the other place asks for.
    return {**(request.vllm_xargs or {}), **top}


def _checked(request: Any) -> dict[str, Any]:
    """An HTTP request's emotion fields, once they are known to be good, and noted for its answer."""
    fields = _asked(request)
    applied = check(fields, served_last())
    asked = {name: value for name, value in fields.items() if name in FIELDS}
    if (record := current.get()) is not None:
        record.resolved, record.applied = True, applied
    if applied is not None and asked.get("emotion") is None:
        # The operator's default, so that a beam's steps know it too.
        asked["emotion"] = {f"{applied.served.name}/{name}": weight for name, weight in applied.mix.items()}
    return asked


def _with_emotion(to_sampling_params: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = to_sampling_params(self, *args, **kwargs)
        asked = _checked(self)
        if asked:
            params.extra_args = {**(params.extra_args or {}), **asked}
        return params

    return wrapped


def _with_beam_emotion(to_beam_search_params: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = to_beam_search_params(self, *args, **kwargs)
        asked = _checked(self)
        if asked:
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
        single.model_extra.update(self.model_extra or {})
        return single

    return wrapped


def _with_emotion_models(show_available_models: Callable[..., Any]) -> Callable[..., Any]:
    """Lists `MODEL:anger` and the like, for clients that can choose a model and send no other field."""

    async def wrapped(self: Any) -> Any:
        models = await show_available_models(self)
        names = [name for _, _, name in served_last().offers()]
        models.data += [
            card.model_copy(update={"id": f"{card.id}:{name}", "parent": card.id})
            for card in list(models.data)
            for name in names
        ]
        return models

    return wrapped


def _wrap_input_processor() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    wrap(InputProcessor, "process_inputs", _resolving)
    InputProcessor.assign_request_id = staticmethod(_refusing_unresolved(InputProcessor.assign_request_id))


def _resolving(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        if not hasattr(self, "_emotion_catalogue"):
            # Kept, as finding it takes longer than all else here. It stays the same when circuits are loaded.
            self._emotion_catalogue = served_by(self.vllm_config)
        served = self._emotion_catalogue
        params = request.sampling_params
        prompt = kwargs["prompt"] if "prompt" in kwargs else args[1]
        beam = prompt.get(KEY) if isinstance(prompt, dict) else None
        if served is None or params is None:
            return request
        if params.extra_args or beam or served.policy.default_emotion is not None:
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
    params: Any,
    catalogue: Catalogue,
    resumable: bool,
    asked: Mapping[str, Any] | None = None,
    prompt_len: int | None = None,
) -> None:
    """Replaces what was asked in `extra_args` by what it resolves to: engine and workers read that alone."""
    from vllm.exceptions import VLLMValidationError

    extra = {**(params.extra_args or {}), **(asked or {})}
    if KEY in extra:
        raise VLLMValidationError(f"extra_args[{KEY!r}] is reserved; use emotion", parameter=KEY)
    applied = check(extra, catalogue)
    wire = applied.wire() if applied is not None else None
    if wire is not None and resumable:
        raise VLLMValidationError("emotion cannot be combined with a resumable session", parameter="emotion")
    rest = {name: value for name, value in extra.items() if name not in FIELDS}
    if wire is not None:
        rest[KEY] = wire
        if prompt_len is not None:
            rest[KEY]["prompt_len"] = prompt_len
    params.extra_args = rest or None


def _wrap_engines() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    # Both servers and `LLM` ask an engine for its tasks before the first request.
    wrap(AsyncLLM, "get_supported_tasks", _shaking_hands_async)
    wrap(LLMEngine, "get_supported_tasks", _shaking_hands)


def _shaking_hands_async(get_supported_tasks: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapped(self: Any) -> Any:
        catalogue = served_by(self.vllm_config)
        if catalogue is not None and not getattr(self, "_emotion_checked", False):
            for reports in await ask_engines(self, "emotion_report"):
                check_workers(reports, catalogue.circuits.values())
            self._emotion_checked = True
        return await get_supported_tasks(self)

    return wrapped


def _shaking_hands(get_supported_tasks: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: Any) -> Any:
        catalogue = served_by(self.vllm_config)
        if catalogue is not None and not getattr(self, "_emotion_checked", False):
            check_workers(self.collective_rpc("emotion_report"), catalogue.circuits.values())
            self._emotion_checked = True
        return get_supported_tasks(self)

    return wrapped


async def ask_engines(client: Any, method: str, *args: Any) -> list[list[Any]]:
    """What each worker of each engine answers: of several (data parallelism), `collective_rpc` asks the first alone."""
    core = client.engine_core
    asked = [
        core._call_utility_async("collective_rpc", method, None, args, None, engine=engine)
        for engine in core.core_engines
    ]
    return list(await asyncio.gather(*asked))


def check_workers(reports: list[dict[str, Any]], circuits: Iterable[Served]) -> None:
    """All workers run this code and these circuits, and together hold each of their sites.

    Raises: Unsupported.
    """
    sites = {site for report in reports for site in report["sites"]}
    for report in reports:
        if report["version"] != __version__:
            raise Unsupported(f"a worker runs emovllm {report['version']}, the server {__version__}")
    for served in circuits:
        if any(served.digest not in report["digests"] for report in reports):
            raise Unsupported("a worker holds another circuit than the server")
        missing = served.sites - sites
        if missing:
            raise Unsupported(
                f"the model has no layer to steer for {len(missing)} of the circuit's {len(served.sites)} sites "
                f"({', '.join(sorted(missing)[:4])}): experts of a mixture have no such site, and other names than "
                "mlp.down_proj and self_attn.o_proj may be missing in emovllm/architectures.py"
            )
