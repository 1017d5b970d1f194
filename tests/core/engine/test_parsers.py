"""The automaton over markers, beside the parsers of vLLM's that they are of."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from emovllm.engine.markers import pieces
from emovllm.engine.parsers import UNMARKED, Opening, markers_of, unmarked
from emovllm.errors import Unsupported
from emovllm.phases import BITS, Automaton, Markers, Phase
from support.tokens import Obliging, tokenizer_with

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
REQUEST = ChatCompletionRequest(messages=[{"role": "user", "content": "Look."}], tools=[TOOL])
THINK = ("<think>", "</think>")
CHATML = ("<|im_start|>", "<|im_end|>")
# Of Hugging Face's templates; which markers there are is said by the tokenizer alone.
OF_TEMPLATES = {"hf"}


class Sample(NamedTuple):
    """A reply, and the parser's name, with the tokens that its model has.

    parts: where it only looks like a call, what cannot be taken for one.
    """

    parser: str
    tokens: tuple[str, ...]
    reply: str
    parts: str = ""


def written(automaton: Automaton, tokenizer: Any, reply: str, within: int, phase: Phase) -> tuple[str, str]:
    """The text of a reply's tokens that belong to a phase, and that of the others."""
    tokens = tokenizer.encode(reply, add_special_tokens=False)
    start = automaton.start(within)
    texts = pieces(tokenizer)
    parts = {True: "", False: ""}
    for token, before in zip(tokens, [start, *automaton.advance(start, tokens)], strict=False):
        parts[bool(automaton.spared[before] & BITS[phase])] += texts[token]
    return parts[True], parts[False]


def bare(text: str, markers: Markers) -> str:
    for marker in (*markers.begins, *markers.ends):
        text = text.replace(marker, "")
    return text.strip()


@pytest.mark.parametrize("name", ReasoningParserManager.list_registered())
def test_each_reasoning_parser_has_markers_or_a_reason(name: str) -> None:
    if name not in OF_TEMPLATES:
        known = "thinking" in markers_of(name, None, Obliging())
        assert known != (name in UNMARKED["thinking"])


@pytest.mark.parametrize("name", ToolParserManager.list_registered())
def test_each_tool_parser_has_markers_or_a_reason(name: str) -> None:
    if name not in OF_TEMPLATES:
        known = "tools" in markers_of(None, name, Obliging())
        assert known != (name in UNMARKED["tools"])


def test_no_reason_is_of_a_parser_that_is_not_there() -> None:
    assert UNMARKED["thinking"].keys() <= set(ReasoningParserManager.list_registered())
    assert UNMARKED["tools"].keys() <= set(ToolParserManager.list_registered())


THOUGHTS = [
    Sample("deepseek_r1", THINK, "<think>It rains.</think>Take a coat."),
    Sample("deepseek_r1", THINK, "It rains.</think>\n\nTake a coat."),
    Sample("deepseek_r1", THINK, "It rains, and"),
    Sample("deepseek_v3", THINK, "It rains.</think>Take a coat."),
    Sample("qwen3", (*THINK, *CHATML), "<think>\nIt rains.\n</think>\n\nTake a coat."),
    Sample("qwen3", (*THINK, *CHATML), "It < rains. </thin </think>Take a </think coat."),
    Sample("qwen3", (*THINK, *CHATML), "It rains, and"),
    Sample("glm45", (*THINK, "<tool_call>", "</tool_call>"), "It rains.</think>Take a coat."),
    Sample("kimi_k2", THINK, "It rains.</think>Take a coat."),
    Sample("minimax_m2", THINK, "It rains.\n</think>\n\nTake a coat."),
    Sample("mistral", ("[THINK]", "[/THINK]", "[TOOL_CALLS]"), "[THINK]It rains.[/THINK]Take a coat."),
    Sample("mistral", ("[THINK]", "[/THINK]", "[TOOL_CALLS]"), "Take a coat."),
    Sample("gemma4", ("<|channel>", "<channel|>"), "<|channel>thought\nIt rains.<channel|>Take a coat."),
    Sample("gemma4", ("<|channel>", "<channel|>"), "Take a coat."),
    Sample("granite", (), "Here is my thought process: It rains. Here is my response: Take a coat."),
    Sample("granite", (), "Take a coat. Here is my coat."),
    Sample("hunyuan_a13b", (), "<think>\nIt rains.\n</think>\n<answer>\nTake a coat."),
    Sample("step3", THINK, "It rains.</think>Take a coat."),
    Sample("ernie45", (*THINK, "<response>", "</response>"), "It rains.</think>Take a coat."),
    Sample("seed_oss", ("<seed:think>", "</seed:think>"), "<seed:think>It rains.</seed:think>Take a coat."),
]


@pytest.mark.parametrize("sample", THOUGHTS, ids=lambda sample: f"{sample.parser}: {sample.reply[:24]}")
def test_what_is_thought_is_what_the_parser_takes_for_it(sample: Sample) -> None:
    tokenizer = tokenizer_with(*sample.tokens)
    markers = markers_of(sample.parser, None, tokenizer)
    opens = Opening(sample.parser, tokenizer)([], {"thinking": True})
    within = BITS["thinking"] if opens else 0
    automaton = Automaton(pieces(tokenizer), markers)
    thought, said = written(automaton, tokenizer, sample.reply, within, "thinking")
    parser = ReasoningParserManager.get_reasoning_parser(sample.parser)
    expected = parser(tokenizer, chat_template_kwargs={"thinking": True}).extract_reasoning(sample.reply, REQUEST)
    # A template's own word begins the thoughts of one, and no parser shows the markers.
    marks = Markers((*markers["thinking"].begins, "<think>", "<seed:think>", "thought\n"), markers["thinking"].ends)
    assert tuple(bare(part, marks) for part in (thought, said)) == tuple((part or "").strip() for part in expected)


CALLED = '{"name": "look", "arguments": {"at": "<a> & b"}}'
CALLS = [
    Sample("hermes", ("<tool_call>", "</tool_call>"), f"Well.<tool_call>\n{CALLED}\n</tool_call>"),
    Sample("hermes", (), f"Well.<tool_call>\n{CALLED}\n</tool_call>"),
    Sample("hermes", (), f"Well.<tool_call>{CALLED}</tool_call>\n<tool_call>{CALLED}</tool_call>"),
    Sample(
        "qwen3_coder",
        ("<tool_call>", "</tool_call>"),
        "Well.<tool_call>\n<function=look>\n<parameter=at>\n> a\n</parameter>\n</function>\n</tool_call>",
    ),
    Sample("qwen3_coder", (), "Well.<function=look>\n<parameter=at>\n> a\n</parameter>\n</function>\n"),
    Sample(
        "deepseek_v3",
        (
            "<\uff5ctool\u2581calls\u2581begin\uff5c>",
            "<\uff5ctool\u2581calls\u2581end\uff5c>",
            "<\uff5ctool\u2581call\u2581begin\uff5c>",
            "<\uff5ctool\u2581call\u2581end\uff5c>",
        ),
        "Well.<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>look\n```json\n"
        '{"at": "a"}\n```<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>',
    ),
    Sample("mistral", ("[TOOL_CALLS]", "[ARGS]"), 'Well.[TOOL_CALLS]look[ARGS]{"at": "a"}'),
    Sample("granite", ("<|tool_call|>",), f"Well.<|tool_call|>[{CALLED}]"),
    Sample("granite4", ("<tool_call>", "</tool_call>"), f"Well.<tool_call>{CALLED}</tool_call>"),
    Sample(
        "glm45",
        ("<tool_call>", "</tool_call>"),
        "Well.<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>a</arg_value>\n</tool_call>",
    ),
    Sample(
        "kimi_k2",
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
        "Well.<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>"
        '{"at": "a"}<|tool_call_end|><|tool_calls_section_end|>',
    ),
    Sample(
        "minimax_m2",
        ("<minimax:tool_call>", "</minimax:tool_call>"),
        'Well.<minimax:tool_call>\n<invoke name="look">\n<parameter name="at">a</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
    ),
    Sample("phi4_mini_json", (), f"Well.functools[{CALLED}]"),
    Sample("hermes", (), "Well. There is <tool> and <tool_cal", "ell. There is < and <"),
    Sample("mistral", ("[TOOL_CALLS]",), "Well. [TOOL] it.", "ell. [ it."),
]


@pytest.mark.parametrize("sample", CALLS, ids=lambda sample: f"{sample.parser}: {sample.reply[:24]}")
def test_what_is_called_is_what_the_parser_takes_for_it(sample: Sample) -> None:
    tokenizer = tokenizer_with(*sample.tokens, "<\uff5ctool\u2581sep\uff5c>", "<|tool_call_argument_begin|>")
    automaton = Automaton(pieces(tokenizer), markers_of(None, sample.parser, tokenizer))
    called, said = written(automaton, tokenizer, sample.reply, 0, "tools")
    parser = ToolParserManager.get_tool_parser(sample.parser)(tokenizer, REQUEST.tools)
    found = parser.extract_tool_calls(sample.reply, REQUEST)
    assert found.tools_called == (sample.reply.endswith((">", "}", "]", "\n")))
    # What may begin a call counts as one: the reply's first token, and any but the first of a marker.
    content, first = (found.content or "").strip(), sample.reply[0]
    assert called.startswith(first)
    if found.tools_called:
        tokens = tokenizer.encode(sample.reply.removeprefix("Well."), add_special_tokens=False)
        assert said == "ell." + pieces(tokenizer)[tokens[0]]
        assert content in ("Well.", "")
        assert all(call.function.name == "look" for call in found.tool_calls)
    else:
        assert (content, said) == (sample.reply, sample.parts)


CHAT = "<|im_start|>user\nLook.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("parser", "template", "prompt", "opens"),
    [
        ("qwen3", {}, CHAT, True),
        ("qwen3", None, CHAT, True),
        ("qwen3", {}, CHAT + "<think>\n", True),
        ("qwen3", {"enable_thinking": False}, CHAT + "<think>\n\n</think>\n\n", False),
        ("qwen3", None, CHAT + "<think>\n\n</think>\n\n", False),
        # An earlier turn's thinking is no business of this one's.
        ("qwen3", {}, f"<|im_start|>assistant\n<think>No.</think>Yes.<|im_end|>\n{CHAT}", True),
        ("deepseek_r1", {}, "Look.<think>\n", True),
        ("deepseek_r1", {}, "Look.", True),
        ("deepseek_r1", None, "Look.</think>", False),
        ("deepseek_v3", {}, "Look.", False),
        ("deepseek_v3", {"thinking": True}, "Look.<think>", True),
        ("deepseek_v3", None, "Look.<think>", True),
        ("deepseek_v3", None, "Look.</think>", False),
        ("gemma4", {}, "Look.", False),
        ("gemma4", {}, "Look.<|channel>thought\n", True),
        ("mistral", {}, "Look.", False),
        ("granite", {}, "Look.", False),
        ("glm45", {}, "Look.<think></think>", False),
        ("glm45", {}, "Look.", True),
        ("openai_gptoss", {}, "Look.", True),
    ],
)
def test_a_reply_begins_with_thinking_where_the_parser_has_it_so(
    parser: str, template: dict[str, Any] | None, prompt: str, opens: bool
) -> None:
    tokens = (*THINK, *CHATML, "<|channel>", "<channel|>", "[THINK]", "[/THINK]", "[TOOL_CALLS]")
    tokenizer = tokenizer_with(*tokens, "<tool_call>", "</tool_call>")
    asked = dict(template) if template is not None else None
    opening = Opening(parser, tokenizer)
    assert opening(tokenizer.encode(prompt, add_special_tokens=False), asked) == opens
    assert asked == template


def test_of_harmony_all_is_thinking_but_what_is_for_the_user_and_calls() -> None:
    tokenizer = tokenizer_with("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|call|>", "<|constrain|>")
    automaton = Automaton(pieces(tokenizer), markers_of("openai_gptoss", "openai", tokenizer))
    header = "<|end|><|start|>assistant"
    reply = (
        f"<|channel|>analysis<|message|>Hm.{header}<|channel|>commentary<|message|>I look.{header}<|channel|>analysis"
        f"<|message|>So.{header}<|channel|>final<|message|>It rains."
    )
    _, said = written(automaton, tokenizer, reply, BITS["thinking"], "thinking")
    # The token that ends a message is part of it.
    assert said == "I look.<|end|><|message|>It rains."
    call = (
        f"<|channel|>analysis<|message|>Hm.{header}<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
        '{"a": 1}'
    )
    called, _ = written(automaton, tokenizer, call, BITS["thinking"], "tools")
    assert called.endswith('look <|constrain|>json<|message|>{"a": 1}')
    assert "Hm." not in called


def test_a_call_that_is_only_thought_of_is_none() -> None:
    tokenizer = tokenizer_with(*THINK)
    automaton = Automaton(pieces(tokenizer), markers_of("deepseek_r1", "hermes", tokenizer))
    reply = "I write <tool_call>, no.</think>Well, <think>, not."
    thought, _ = written(automaton, tokenizer, reply, BITS["thinking"], "thinking")
    assert thought.startswith("I write <tool_call>, no.</think>")
    called, _ = written(automaton, tokenizer, reply, BITS["thinking"], "tools")
    assert "no." not in called


def test_pieces_keep_spaces_and_special_tokens() -> None:
    tokenizer = tokenizer_with("<think>")
    texts = pieces(tokenizer)
    assert len(texts) == len(tokenizer)
    for text in (" ", "\n", "a", "<think>"):
        assert texts[tokenizer.convert_tokens_to_ids(text)] == text


def test_without_parsers_or_markers_it_is_told_why() -> None:
    assert markers_of(None, None, Obliging()) == {}
    assert "--reasoning-parser" in unmarked({}, {})["thinking"]
    assert "--tool-call-parser" in unmarked({"tools": None}, {})["tools"]
    assert "JSON" in unmarked({"tools": "llama3_json"}, markers_of(None, "llama3_json", Obliging()))["tools"]
    assert unmarked({"thinking": "qwen3", "tools": "hermes"}, markers_of("qwen3", "hermes", Obliging())) == {}
    # Its tokens are not there.
    lacking = markers_of("deepseek_r1", None, tokenizer_with())
    assert "tokenizer" in unmarked({"thinking": "deepseek_r1"}, lacking)["thinking"]


@pytest.mark.parametrize(("reasoning", "tools"), [("nobodys", None), (None, "nobodys")])
def test_a_parser_that_vllm_does_not_know_is_refused(reasoning: str | None, tools: str | None) -> None:
    with pytest.raises(Unsupported, match="nobodys"):
        markers_of(reasoning, tools, Obliging())
