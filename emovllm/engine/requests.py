"""The front end: a request's emotion is read and resolved before the request is taken.

In place only in a process that configures a circuit. Requests to an engine without one pass untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from emovllm.applied import Applied
from emovllm.catalogue import Catalogue
from emovllm.emotion import KEY, NONE, Wire
from emovllm.engine import prompting, scoring, transfer
from emovllm.engine.guarding import guarded, refuse_guarded
from emovllm.engine.patching import patches
from emovllm.engine.registry import served_by, served_last
from emovllm.engine.spared import Beginnings, form_of, keeping_template
from emovllm.errors import EmotionError, Reason
from emovllm.fields import FIELDS
from emovllm.guards import Acted
from emovllm.misplaced import NESTS, refuse_misplaced
from emovllm.readout import Detail, Readouts
from emovllm.sparing import FREE, Form

# What the plain model is asked for with, so that an operator's default does not come in.
_PLAIN = Wire("", {}, "generation")
# Marks the prompts of a beam's steps.
_BEAM = f"{KEY}_beam"
_BEAMS = "a beam search, whose beams share tokens; ask for n replies instead"


def install() -> None:
    for patch in (with_emotion, with_beam_emotion, with_beams_of_prompt, keeping_prompt, keeping_fields):
        patch.install()
    for patch in (with_emotion_models, keeping_template, resolving, refusing_unresolved, instructing):
        patch.install()


class Asked(NamedTuple):
    """What a request asks of an engine: an emotion, a read-out."""

    applied: Applied | None
    detail: Detail | None

    def wire(self, catalogue: Catalogue) -> Wire:
        wire = (self.applied.wire() if self.applied is not None else None) or _PLAIN
        if self.applied is not None:
            wire = wire._replace(prompt_len=self.applied.start)
        return wire if self.detail is None else wire._replace(reading=catalogue.reading)

    def spared(self) -> dict[str, Any]:
        """The fields of what is spared where an operator's default is applied, which only the request's form tells."""
        if self.applied is None or not self.applied.mute:
            return {}
        return {"emotion": NONE} if self.applied.plain else {"emotion_mute": list(self.applied.mute)}


@dataclass(slots=True)
class Record:
    """What became of one HTTP request's emotion, for whoever answers it."""

    resolved: bool = False
    applied: Applied | None = None
    refused: Reason | None = None
    detail: Detail | None = None
    readouts: Readouts = field(default_factory=Readouts)
    instructed: str | None = None  # the style of the instruction that its chats were rendered with
    # What guards did to each choice.
    acted: dict[int, list[Acted]] = field(default_factory=dict)


# Set around each HTTP request by the server's middleware; the handler runs in a copy of its context.
current: ContextVar[Record | None] = ContextVar("emotion_record", default=None)


def check(fields: Mapping[str, Any], catalogue: Catalogue, form: Form = FREE) -> Asked:
    """`Catalogue.resolve` and `detail`, raising vLLM's error, which its server turns into a 400 in OpenAI's shape.

    fields: all that a request has and vLLM does not know.
    """
    from vllm.exceptions import VLLMValidationError

    if KEY in fields:
        raise VLLMValidationError(f"extra_args[{KEY!r}] is reserved; use emotion", parameter=KEY)
    try:
        refuse_misplaced(fields)
        return Asked(catalogue.resolve(fields, form), catalogue.detail(fields))
    except EmotionError as error:
        if (record := current.get()) is not None:
            record.refused = error.reason
        raise VLLMValidationError(str(error), parameter=error.parameter) from None


def _fields(request: Any) -> dict[str, Any]:
    """What vLLM does not know of an HTTP request: top level, or in `vllm_xargs`, where OpenAI's batch files may put an
    emotion."""
    # vLLM knows the names of some, and nothing of what is in them.
    nests = {name: getattr(request, name, None) for name in NESTS}
    top = {name: value for name, value in {**nests, **(request.model_extra or {})}.items() if value is not None}
    # A null counts as not given: it must not hide what the other place asks for.
    return {**(request.vllm_xargs or {}), **top}


def _resolved(request: Any, params: Any) -> tuple[Asked, Wire, bool]:
    """What an HTTP request asks for, noted for its answer, and whether it asks itself, or for none by its own wish."""
    fields = _fields(request)
    catalogue = served_last()
    asked = check(fields, catalogue, form_of(params, request))
    record = current.get()
    if asked.applied is not None:
        prompting.require_rendered(
            request, asked.applied.instruction, record.instructed if record is not None else None
        )
    if record is not None:
        record.resolved, record.applied, record.detail = True, asked.applied, asked.detail
    return asked, asked.wire(catalogue), any(fields.get(name) is not None for name in FIELDS)


@patches(
    "vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest.to_sampling_params",
    "vllm.entrypoints.openai.completion.protocol.CompletionRequest.to_sampling_params",
    "vllm.entrypoints.openai.responses.protocol.ResponsesRequest.to_sampling_params",
)
def with_emotion(to_sampling_params: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    params = to_sampling_params(self, *args, **kwargs)
    asked, wire, own = _resolved(self, params)
    scoring.refuse_plain_scores(wire, params)
    # An operator's default is the engine's to apply: parameters that are only rendered hold what any server reads.
    if given := {KEY: wire} if own else asked.spared():
        params.extra_args = {**(params.extra_args or {}), **given}
    return params


@patches(
    "vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest.to_beam_search_params",
    "vllm.entrypoints.openai.completion.protocol.CompletionRequest.to_beam_search_params",
)
def with_beam_emotion(to_beam_search_params: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    params = to_beam_search_params(self, *args, **kwargs)
    _, params.emotion, _ = _resolved(self, params)
    scoring.refuse_beams(params.emotion)
    for name, asked in (("emotion_readout", params.emotion.reading), ("emotion_target", params.emotion.target)):
        if asked is not None:
            from vllm.exceptions import VLLMValidationError

            message = f"{name} cannot be combined with beam search, whose beams share tokens"
            raise VLLMValidationError(message, parameter=name)
    refuse_guarded(served_last().policy.guards, _BEAMS)
    return params


@patches("vllm.entrypoints.generate.beam_search.online.BeamSearchOnlineMixin.beam_search")
def with_beams_of_prompt(
    beam_search: Callable[..., Any], self: Any, prompt: Any, request_id: str, params: Any, **kwargs: Any
) -> Any:
    wire = getattr(params, "emotion", None)
    # vLLM itself refuses prompts without token ids.
    if wire is not None and "prompt_token_ids" in prompt:
        prompt = {**prompt, KEY: wire._replace(prompt_len=len(prompt["prompt_token_ids"]))}
    return beam_search(self, prompt, request_id, params, **kwargs)


# Each step of a beam is a new request, whose prompt holds generated tokens.
@patches("vllm.entrypoints.generate.beam_search.utils.BeamSearchSequence.get_prompt")
def keeping_prompt(get_prompt: Callable[..., Any], self: Any) -> Any:
    prompt = get_prompt(self)
    if KEY in self.orig_prompt:
        prompt[KEY] = self.orig_prompt[KEY]
    return {**prompt, _BEAM: True}


@patches("vllm.entrypoints.openai.chat_completion.protocol.BatchChatCompletionRequest.to_chat_completion_request")
def keeping_fields(to_chat_completion_request: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    single = to_chat_completion_request(self, *args, **kwargs)
    single.model_extra.update(self.model_extra or {})
    return single


# Of chats, their batches and responses, but for models whose chats vLLM renders in another way.
@patches("vllm.renderers.online_renderer.OnlineRenderer.preprocess_chat")
async def instructing(
    preprocess_chat: Callable[..., Any], self: Any, request: Any, messages: Any, *args: Any, **kwargs: Any
) -> Any:
    record = current.get()
    fields = _fields(request) if record is not None and hasattr(request, "to_sampling_params") else {}
    applied = check(fields, served_last()).applied if fields.get("emotion_prompt") is not None else None
    if record is None or applied is None or applied.instruction is None:
        return await preprocess_chat(self, request, messages, *args, **kwargs)

    async def render(chat: prompting.Chat) -> tuple[Any, Any]:
        rendered: tuple[Any, Any] = await preprocess_chat(self, request, chat, *args, **kwargs)
        return rendered

    rendered = await prompting.rendered(render, self.renderer, request, messages, applied.instruction)
    record.instructed = applied.instruction.style
    return rendered


@patches("vllm.entrypoints.openai.models.serving.OpenAIServingModels.show_available_models")
async def with_emotion_models(show_available_models: Callable[..., Any], self: Any) -> Any:
    """Lists `MODEL:anger` and the like, for clients that can choose a model and send no other field."""
    models = await show_available_models(self)
    names = [name for _, _, name in served_last().offers()]
    models.data += [
        card.model_copy(update={"id": f"{card.id}:{name}", "parent": card.id})
        for card in list(models.data)
        for name in names
    ]
    return models


@patches("vllm.v1.engine.input_processor.InputProcessor.process_inputs")
def resolving(process_inputs: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    request = process_inputs(self, *args, **kwargs)
    if not hasattr(self, "_emotion_catalogue"):
        # Kept, as finding it takes longer than all else here. It stays the same when circuits are loaded.
        self._emotion_catalogue = served_by(self.vllm_config)
    catalogue = self._emotion_catalogue
    params = request.sampling_params
    prompt = kwargs["prompt"] if "prompt" in kwargs else args[1]
    beam = prompt.get(KEY) if isinstance(prompt, dict) else None
    if params is None:
        return request
    if catalogue is None:
        # In a process that has another engine with a circuit.
        if beam or Wire.of(params):
            raise ValueError("this engine has no circuit")
    elif params.extra_args or beam or catalogue.policy.default_emotion is not None or catalogue.policy.guards:
        if isinstance(prompt, dict) and _BEAM in prompt:
            refuse_guarded(catalogue.policy.guards, _BEAMS)
        tokens = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
        _resolve_params(params, catalogue, bool(request.resumable), beam, len(tokens))
        if (wire := Wire.of(params)) is not None and wire.muted:
            if not hasattr(self, "_emotion_beginnings"):
                self._emotion_beginnings = Beginnings(self.vllm_config)
            params.extra_args[KEY] = self._emotion_beginnings.placed(wire, request)
        if self.vllm_config.kv_transfer_config is not None:
            transfer.accept(params, len(tokens))
    return request


def _resolve_params(params: Any, catalogue: Catalogue, resumable: bool, beam: Wire | None, prompt_len: int) -> None:
    """Replaces what is asked in `extra_args` by what it resolves to: engine and workers read that alone."""
    from vllm.exceptions import VLLMValidationError

    extra = params.extra_args or {}
    wire = beam or extra.get(KEY)
    # A client's can be no such thing: it is from above, or from Python.
    if not isinstance(wire, Wire):
        asked = check(extra, catalogue, form_of(params))
        prompting.require_rendered(None, asked.applied and asked.applied.instruction, None)
        wire = asked.wire(catalogue)
    elif wire.weights and all(wire.circuit != served.digest for served in catalogue.circuits.values()):
        raise VLLMValidationError("the circuit of this emotion was unloaded just now", parameter="emotion")
    if resumable:
        refuse_guarded(catalogue.policy.guards, "a resumable session, whose replies are taken up again")
    if (wire.weights or wire.reading is not None) and resumable:
        raise VLLMValidationError(
            "an emotion or a read-out cannot be combined with a resumable session", parameter="emotion"
        )
    if beam is None:
        scoring.refuse_plain_scores(wire, params)
        wire = scoring.begun(wire, params, prompt_len)
    wire = guarded(wire, catalogue)
    if wire.calm and wire.prompt_len is not None:
        refuse_guarded(wire.guards, "a reply that is given (emotion_from), in which nothing is read")
    rest = {name: value for name, value in extra.items() if name not in FIELDS and name != KEY}
    if wire.weights or wire.reading is not None:
        rest[KEY] = wire
    params.extra_args = rest or None


@patches("vllm.v1.engine.input_processor.InputProcessor.assign_request_id")
def refusing_unresolved(assign_request_id: Callable[..., Any], request: Any) -> Any:
    """Engines also take requests made elsewhere, which no input processor has seen."""
    extra = (request.sampling_params.extra_args if request.sampling_params is not None else None) or {}
    # Nor does an engine without a circuit, in a process that has another with one, ignore them.
    if any(extra.get(name) is not None for name in FIELDS):
        raise ValueError("an EngineCoreRequest's emotion was not resolved; pass a prompt and sampling parameters")
    return assign_request_id(request)
