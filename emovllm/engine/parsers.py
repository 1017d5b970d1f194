"""vLLM's parsers of thinking and of tool calls: the markers they go by, and whether a reply begins with thinking.

What a parser tells itself goes before what we know of it: a new version's parser is read as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from emovllm.errors import Unsupported
from emovllm.phases import PHASES, Markers, Phase
from emovllm.sparing import NO_PARSERS

# What vLLM's parsers know by other means than attributes: regular expressions, another library, a module's constants.
_HARMONY_CALLS = ("<|channel|>commentary to=functions.", "<|start|>assistant to=functions.")
_KNOWN: dict[Phase, dict[str, Markers]] = {
    "thinking": {
        "granite": Markers(
            ("Here's my thought process:", "Here is my thought process:"),
            ("Here's my response:", "Here is my response:"),
        ),
        "hunyuan_a13b": Markers(("<think>\n",), ("\n</think>\n<answer>\n",)),
        # One pair for each reasoning effort; a call ends thinking as well.
        "k2_horizon": Markers(
            ("<ifm|think>", "<ifm|think_fast>", "<ifm|think_faster>"),
            ("</ifm|think>", "</ifm|think_fast>", "</ifm|think_faster>", "<ifm|tool_calls>"),
        ),
        # Each message has a header with its recipient: the model itself, the user, a tool.
        "muse_glimmer": Markers(("to=self<|message|>",), ("<|eom|>", "<|eot|>", "<|message|>")),
        # Harmony: all is thinking, headers too, but what is for the user, and calls.
        "openai_gptoss": Markers(
            ("<|channel|>analysis", "<|end|>"),
            ("<|channel|>final", "<|channel|>commentary<|message|>", *_HARMONY_CALLS),
        ),
    },
    "tools": {
        "apertus": Markers(("<|tools_prefix|>",), ("<|tools_suffix|>",)),
        "cohere_command3": Markers(("<|START_ACTION|>",), ("<|END_ACTION|>",)),
        "cohere_command4": Markers(("<|START_ACTION|>",), ("<|END_ACTION|>",)),
        "gigachat3": Markers(("function call<|role_sep|>\n", "<|function_call|>")),
        "hunyuan_a13b": Markers(("<tool_calls>",), ("</tool_calls>",)),
        "internlm": Markers(("<|action_start|><|plugin|>",), ("<|action_end|>",)),
        "lfm2": Markers(("<|tool_call_start|>",), ("<|tool_call_end|>",)),
        "muse_glimmer": Markers(("<atem:function_calls>",), ("</atem:function_calls>",)),
        "olmo3": Markers(("<function_calls>",), ("</function_calls>",)),
        "openai": Markers(_HARMONY_CALLS, ("<|call|>",)),
        "phi4_mini_json": Markers(("functools",)),
    },
}
# Those that go by no marker, and why nothing can be spared with them.
UNMARKED: dict[Phase, dict[str, str]] = {
    "thinking": {"minimax_m2_append_think": "it hands thinking on as part of the answer"},
    "tools": {
        "llama3_json": "its calls are JSON, which begins with no marker",
        "llama4_json": "its calls are JSON, which begins with no marker",
        "llama4_pythonic": "its calls are lists, which begin with no marker",
        "pythonic": "its calls are lists, which begin with no marker",
        "xlam": "its calls have several forms, some without a marker",
    },
}
# Attributes by which tool parsers name what begins and ends their calls; around all calls, where there is such a pair.
_PAIRS = (
    ("tool_calls_start_token", "tool_calls_end_token"),
    ("tool_call_start_token", "tool_call_end_token"),
    ("TOOL_CALLS_BEGIN", "TOOL_CALLS_END"),
    ("_TOOL_CALLS_START", "_TOOL_CALLS_END"),
    ("tools_open", "tools_close"),
    ("tc_start", "tc_end"),
    ("tool_start_token", ""),
)
# Parsers that think by the request's leave alone, for which the prompt is to decide where nobody tells them.
_THINKING_ON = {"thinking": True, "enable_thinking": True}


def reasoning_parser(name: str) -> Any:
    """The class. Raises: Unsupported."""
    from vllm.reasoning import ReasoningParserManager

    return _registered(ReasoningParserManager.get_reasoning_parser, "--reasoning-parser", name)


def markers_of(reasoning: str | None, tools: str | None, tokenizer: Any) -> dict[Phase, Markers]:
    """What marks the phases of replies, for parsers by vLLM's names; none where one is None or has no markers.

    Raises: Unsupported where a parser is not registered.
    """
    from vllm.tool_parsers import ToolParserManager

    found: dict[Phase, Markers] = {}
    if reasoning and reasoning not in UNMARKED["thinking"]:
        cls = reasoning_parser(reasoning)
        known = _KNOWN["thinking"].get(reasoning)
        found["thinking"] = known or _made(lambda: _thinking(cls(tokenizer, chat_template_kwargs=dict(_THINKING_ON))))
    if tools and tools not in UNMARKED["tools"]:
        cls = _registered(ToolParserManager.get_tool_parser, "--tool-call-parser", tools)
        known = _KNOWN["tools"].get(tools)
        # What vLLM has of Hugging Face's templates for both, its parser of thinking has read.
        cls = reasoning_parser(tools) if tools == "hf" else cls
        found["tools"] = known or _made(lambda: _calls(cls(tokenizer)))
    return {phase: markers for phase, markers in found.items() if markers.begins or markers.ends}


def unmarked(names: Mapping[Phase, str | None], markers: Mapping[Phase, Markers]) -> dict[Phase, str]:
    """Why phases cannot be told in replies, in words; of those that can be, nothing.

    names: the phases' parsers.
    """
    told: dict[Phase, str] = {}
    for phase in PHASES:
        name = names.get(phase)
        if not name:
            told[phase] = NO_PARSERS[phase]
        elif phase not in markers:
            why = UNMARKED[phase].get(name, "with this model's tokenizer, nothing tells them")
            told[phase] = f"its parser {name} goes by no markers ({why})"
    return told


class Opening:
    """Whether a reply begins with thinking, as the reasoning parser has it."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._always = name == "openai_gptoss"
        self._parser, self._tokenizer = reasoning_parser(name), tokenizer

    def __call__(self, prompt: Sequence[int], template: Mapping[str, Any] | None) -> bool:
        """prompt: its token ids. template: what the request gave its chat template; None where nobody tells.

        Where the prompt leaves it open, the parser says what it takes a reply without markers for.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        # vLLM's parser of harmony knows nothing of prompts; each of them ends before the first channel.
        if self._always:
            return True
        given = dict(_THINKING_ON if template is None else template)
        parser = self._parser(self._tokenizer, chat_template_kwargs=given)
        if parser.is_reasoning_end(list(prompt)):
            return False
        if self._left_open(parser, prompt):
            return True
        thought, _ = parser.extract_reasoning("a", ChatCompletionRequest(messages=[]))
        return bool(thought)

    @staticmethod
    def _left_open(parser: Any, prompt: Sequence[int]) -> bool:
        """Whether a parser that begins with an answer finds its thinking begun in the prompt."""
        adjust = getattr(parser, "adjust_initial_state_from_prompt", None)
        engine = getattr(parser, "_parser_engine", None)
        if adjust is None or engine is None:
            return False
        adjust(list(prompt))
        return bool(engine._engine.state.name == "REASONING")


def _registered(get: Any, option: str, name: str) -> Any:
    try:
        return get(name)
    except KeyError:
        raise Unsupported(f"{option} {name}: vLLM knows no such parser") from None


def _made(read: Callable[[], Markers]) -> Markers:
    """Parsers refuse a tokenizer that lacks their tokens; vLLM does so once it needs one."""
    try:
        return read()
    except (RuntimeError, ValueError, KeyError):
        return Markers(())


def _thinking(parser: Any) -> Markers:
    if (engine := getattr(parser, "_parser_engine", None)) is not None:
        return _of_engine(engine, lambda state: state == "REASONING")
    ends = _texts(parser.reasoning_end_str)
    return Markers(_texts(parser.reasoning_start_str), ends) if ends else Markers(())


def _calls(parser: Any) -> Markers:
    if (engine := getattr(parser, "_parser_engine", None)) is not None:
        return _of_engine(engine, lambda state: state.startswith("TOOL"))
    if (template := getattr(parser, "response_template", None)) is not None:
        calls = template.fields.get("tool_calls")
        return Markers(tuple(calls.open_literals or ()), tuple(calls.close_literals or ())) if calls else Markers(())
    # One of vLLM's parsers leaves it to another object.
    for holder in (parser, getattr(parser, "_extractor", None)):
        for begin, end in _PAIRS:
            begins, ends = _texts(getattr(holder, begin, None)), _texts(getattr(holder, end, None) if end else None)
            if begins and (ends or not end):
                return Markers(begins, ends)
    return Markers(())


def _of_engine(engine: Any, inside: Any) -> Markers:
    """From the transitions of vLLM's state machine: what enters the phase, and what leaves it."""
    config = engine.parser_engine_config
    begins: dict[str, None] = {}
    ends: dict[str, None] = {}
    for (state, terminal), transition in config.transitions.items():
        before, after = inside(state.name), inside(transition.next_state.name)
        if before != after:
            (begins if after else ends).update(dict.fromkeys(_texts(config.terminals.get(terminal))))
    return Markers(tuple(begins), tuple(ends))


def _texts(value: Any) -> tuple[str, ...]:
    """Of a text, or of several."""
    return tuple(_each(value))


def _each(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    else:
        yield from value or ()
