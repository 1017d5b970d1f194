"""The benchmark of tool calls and thoughts under an emotion: what it asks, and how it counts."""

from __future__ import annotations

import json
from collections import Counter

import jsonschema
import pytest
from transformers.utils.chat_template_utils import render_jinja_template
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

from benchmarks.tool_calls import CASES, PROMPTS, QUESTIONS, TEMPLATE, TOOL_PARSER, TOOLS, Reply, bodies, counted, valid
from emovllm_offline.judges.lexicon import LexiconJudge
from support.tokens import tokenizer_with

EMOTIONS = ("anger", "fear")
BARE = '\n{"name": "set_alarm", "arguments": {"hour": 5, "minute": 30}} and so on'
WAKE = ("set_alarm", '{"hour": 5, "minute": 30}')


def test_the_tools_have_schemas_and_each_has_its_cases() -> None:
    for tool in TOOLS:
        jsonschema.Draft202012Validator.check_schema(tool["function"]["parameters"])
    names = [tool["function"]["name"] for tool in TOOLS]
    assert Counter(name for name, _ in CASES) == dict.fromkeys(names, 6)
    assert len(CASES) == len(QUESTIONS) == 36
    calls = [call["function"] for turn in PROMPTS["example"] for call in turn.get("tool_calls", ())]
    assert len(calls) == 3
    assert all(valid((call["name"], call["arguments"])) for call in calls)


def test_the_template_shows_calls_as_the_parser_reads_them() -> None:
    # vLLM gives templates the arguments as objects.
    turns = [
        {
            **turn,
            "tool_calls": [{"function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}],
        }
        for turn in PROMPTS["example"]
        for call in turn.get("tool_calls", ())
    ]
    template = TEMPLATE.read_text(encoding="utf-8")
    system = {"role": "system", "content": PROMPTS["calling"]}
    (rendered,), _ = render_jinja_template([[system, *turns]], tools=TOOLS, chat_template=template)
    said = [part.removesuffix("<|im_end|>\n") for part in rendered.split("<|im_start|>assistant\n")]
    assert said[0].startswith(f"<|im_start|>system\n{PROMPTS['calling']}")
    assert all(json.dumps(tool) in said[0] for tool in TOOLS)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "Hello"}], tools=TOOLS)
    parser = ToolParserManager.get_tool_parser(TOOL_PARSER)(tokenizer_with())
    for turn, text in zip(turns, said[1:], strict=True):
        found = parser.extract_tool_calls(text, request)
        (call,), (expected,) = found.tool_calls, turn["tool_calls"]
        assert (call.function.name, json.loads(call.function.arguments)) == tuple(expected["function"].values())
        assert found.content is not None
        assert found.content.strip() == turn["content"]


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ('{"hour": 5, "minute": 30}', True),
        ('{"hour": 5, "minute": 30, "label": "ferry"}', True),
        ('{"hour": "half past five", "minute": 30}', False),
        ('{"hour": 5}', False),
        ('{"hour": 5, "minute": 30, "mood": "furious"}', False),
        ('{"hour": 5, "minute": 30', False),
        ("[5, 30]", False),
    ],
)
def test_a_call_is_valid_where_its_arguments_fit(arguments: str, fits: bool) -> None:
    assert valid(("set_alarm", arguments)) is fits
    assert not valid(("scream", arguments))


def test_each_prompt_is_asked_plainly_steered_and_spared_in_one_emotion() -> None:
    asked = list(bodies(EMOTIONS, (1.0, 1.5), ("calls", "thoughts")))
    assert len(asked) == (len(CASES) + len(QUESTIONS)) * (1 + 2 * 2)
    fields = {
        (kind, way): {name: body[name] for name in body if name not in ("messages", "tools", "emotion_strength")}
        for kind, way, strength, emotion, _, body in asked
        if emotion == "fear"
    }
    assert fields == {
        ("calls", "plain"): {"emotion": "none"},
        ("calls", "steered"): {"emotion": "fear", "emotion_mute": []},
        ("calls", "spared"): {"emotion": "fear", "emotion_mute": ["tools"]},
        ("thoughts", "plain"): {"emotion": "none"},
        ("thoughts", "steered"): {"emotion": "fear", "emotion_scope": "generation"},
        ("thoughts", "spared"): {"emotion": "fear", "emotion_scope": "answer"},
    }


def test_what_came_is_counted_with_its_intervals() -> None:
    wake = [number for number, (name, _) in enumerate(CASES) if name == "set_alarm"]
    furious = "I am furious about this outrage."
    replies = [
        Reply("calls", "plain", 0.0, "anger", wake[0], "Early.", None, (WAKE,), "tool_calls"),
        Reply("calls", "plain", 0.0, "anger", 0, "Early.", None, (WAKE,), "tool_calls"),
        Reply("calls", "steered", 1.0, "anger", wake[1], furious + BARE, None, (), "length"),
        Reply("calls", "steered", 1.0, "anger", wake[2], furious, None, (("set_alarm", "{"),), "tool_calls"),
        Reply("thoughts", "steered", 1.0, "anger", 0, furious, "He plays.", (), "stop"),
        Reply("thoughts", "steered", 1.0, "anger", 1, "", furious, (), "length"),
    ]
    head, plain, steered, *thoughts = counted(replies, [LexiconJudge(EMOTIONS)])
    assert head.startswith("| calls | valid calls | and the right tool | right, with or without markers | all the")
    cells = [cell.strip() for cell in plain.strip("|").split("|")]
    assert [cell.partition(",")[0] for cell in cells] == ["plain", "2 of 2", "1 of 2", "1 of 2", *["0 of 2"] * 3]
    assert cells[2] == "1 of 2, 50 (9-91)"
    cells = [cell.strip().partition(",")[0] for cell in steered.strip("|").split("|")]
    assert cells == ["steered 1", "0 of 2", "0 of 2", "1 of 2", "2 of 2", "0 of 2", "1 of 2"]
    cells = [cell.strip().partition(",")[0] for cell in thoughts[1].strip("|").split("|")]
    assert cells == ["steered 1", "1 of 2", "1 of 2", "1 of 2", "1 of 2"]
