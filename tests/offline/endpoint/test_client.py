"""Endpoints as they are met: what they refuse, what they keep back, and how they think."""

import json
import logging

import pytest

from emovllm.errors import EndpointError, FilteredByEndpoint, JudgeError, RefusedByEndpoint
from emovllm_offline.data.styles import Frame
from emovllm_offline.endpoint.answer import FILTERED, without_thinking
from emovllm_offline.endpoint.client import ROOMS, Endpoint
from emovllm_offline.judges.judge import CachedJudge, Verdict
from emovllm_offline.judges.openai import MAX_TOKENS, PATIENCE, BlindOpenAIJudge, OpenAIJudge
from emovllm_offline.model.generate import EndpointBackend, Generation, Question
from support.stub import Refusal, completion, filtering, in_turn, newer_openai, stub_server, without_system_role

YES = '{"match": 1, "reason": "loud"}'
DRAFT = 'It could be {"match": 0, "reason": "a loss"}, but the tone is furious.'
LOUD = Verdict(True, None, "loud")


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stub_server() as running:
        yield running


def judge(stub, texts, **options):
    return OpenAIJudge(Endpoint("m", stub.url, retries=0, **options)).judge(texts, ["anger"] * len(texts))


# What is refused


def test_newer_models_are_asked_as_they_want_it_once_and_for_all(stub, caplog):
    stub.answer = newer_openai(lambda request: YES)
    endpoint = Endpoint("m", stub.url, concurrency=1)
    with caplog.at_level(logging.WARNING):
        assert OpenAIJudge(endpoint).judge(["a", "b"], ["anger"] * 2) == [LOUD] * 2
        assert OpenAIJudge(endpoint).judge(["c"], ["anger"]) == [LOUD]
    assert len(stub.requests) == 2 + 3
    assert [request["max_completion_tokens"] for request in stub.requests[2:]] == [MAX_TOKENS] * 3
    assert all("temperature" not in request and "response_format" in request for request in stub.requests[2:])
    assert [record.message for record in caplog.records] == list(endpoint.dialect.notes)
    assert ["max_tokens" in note for note in endpoint.dialect.notes] == [True, False]
    assert "temperature" in endpoint.dialect.notes[1]


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal("no", "temperature"),
        Refusal("Unsupported parameter: temperature"),
        Refusal("[{'type': 'extra_forbidden', 'loc': ('body', 'temperature')}]", status=422),
    ],
)
def test_refusals_name_a_parameter_in_several_ways(stub, refusal):
    stub.answer = lambda request: refusal if "temperature" in request else YES
    assert judge(stub, ["t"]) == [LOUD]
    assert set(stub.requests[0]) - set(stub.requests[1]) == {"temperature"}


def test_one_text_that_is_refused_takes_nothing_from_the_others(stub):
    stub.answer = lambda request: Refusal("too long") if "long" in str(request["messages"]) else YES
    endpoint = Endpoint("m", stub.url, concurrency=1)
    short, long, other = OpenAIJudge(endpoint).judge(["a", "long", "b"], ["anger"] * 3)
    assert short == other == LOUD
    assert not long.judged
    assert "too long" in long.reason
    assert stub.requests[-1]["response_format"]["type"] == "json_schema"
    assert endpoint.dialect.notes == ()


def test_a_refused_value_that_no_other_name_mends_is_told_in_the_servers_words(stub):
    stub.answer = lambda request: Refusal("the length is too large", next(n for n in request if "max_" in n))
    with pytest.raises(RefusedByEndpoint, match="the length is too large"):
        judge(stub, ["t"])
    assert len(stub.requests) == 2


def test_templates_without_a_system_role_get_it_in_the_message(stub):
    stub.answer = without_system_role(lambda request: YES)
    assert judge(stub, ["t"]) == [LOUD]
    (message,) = stub.requests[-1]["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("You assess")
    assert message["content"].endswith("\n\nTarget emotion: anger\nText:\nt")
    assert stub.requests[-1]["response_format"]["type"] == "json_schema"


# Thinking


@pytest.mark.parametrize(
    "answer",
    [
        f"<think>{DRAFT}</think>\n{YES}",
        f"{DRAFT}</think>{YES}",  # opened by the template
        f"[THINK]{DRAFT}[/THINK]{YES}",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{YES}",
        completion(YES, reasoning_content=DRAFT),
        completion(YES, reasoning=DRAFT),
        completion([{"type": "thinking", "thinking": DRAFT}, {"type": "text", "text": YES}]),
    ],
)
def test_the_verdict_is_the_one_after_the_thinking(stub, answer):
    stub.answer = lambda request: answer
    assert judge(stub, ["t"]) == [LOUD]
    assert len(stub.requests) == 1


@pytest.mark.parametrize("draft", [DRAFT, f"<think>{DRAFT}", f"{DRAFT} So: {YES}"])
def test_a_draft_is_no_verdict(stub, draft):
    stub.answer = in_turn(completion(draft, "length"), YES)
    assert judge(stub, ["t"]) == [LOUD]


def test_verdicts_that_contradict_each_other_are_asked_again(stub):
    stub.answer = in_turn(f"{DRAFT} So: {YES}", YES)
    assert judge(stub, ["t"]) == [LOUD]
    assert len(stub.requests) == 2


@pytest.mark.parametrize("content", [None, "", "<think>It", '{"match": 1, "rea'])
def test_an_answer_that_is_cut_off_gets_more_tokens_and_so_do_those_after_it(stub, content, caplog):
    def answer(request):
        return completion(content, "length") if request["max_tokens"] < 2000 else YES

    stub.answer = answer
    with caplog.at_level(logging.WARNING):
        assert judge(stub, ["a", "b"], concurrency=1) == [LOUD] * 2
    assert [request["max_tokens"] for request in stub.requests] == [MAX_TOKENS, *[MAX_TOKENS + ROOMS[1]] * 2]
    assert "2000 more tokens" in caplog.text


def test_a_text_on_which_it_never_ends_is_not_judged(stub):
    stub.answer = lambda request: completion(None, "length") if "riddle" in str(request["messages"]) else YES
    plain, riddle = judge(stub, ["a", "riddle"], concurrency=1)
    assert plain == LOUD
    assert not riddle.judged
    assert "cut off" in riddle.reason
    assert len(stub.requests) == 1 + len(ROOMS)


def test_a_context_too_short_for_more_tokens_counts_as_cut_off(stub):
    stub.answer = lambda request: (
        Refusal("max_tokens is too large", "max_tokens")
        if request.get("max_tokens", 9999) > 1000
        else YES
        if "plain" in str(request["messages"])
        else completion(None, "length")
    )
    plain, riddle = judge(stub, ["plain", "riddle"], concurrency=1)
    assert (plain.judged, riddle.judged) == (True, False)


def test_a_model_that_never_gets_to_a_verdict_is_given_up_early(stub):
    stub.answer = lambda request: completion(None, "length")
    with pytest.raises(JudgeError, match="m was cut off before its verdict"):
        judge(stub, [f"text {i}" for i in range(100)], concurrency=1)
    assert len(stub.requests) == PATIENCE * len(ROOMS)


def test_text_without_thinking_is_left_as_it_is():
    assert without_thinking(" I think, <b>so</b>.") == (" I think, <b>so</b>.", False)
    assert without_thinking("<think>a</think> b </think> c") == ("c", True)


# Filters


@pytest.mark.parametrize(
    "kept_back",
    [
        Refusal("filtered", "prompt", "content_filter"),
        Refusal("flagged as violating our usage policy", None, "invalid_prompt"),
        Refusal("Your chosen model requires moderation and your input was flagged", status=403),
        completion(None, "content_filter"),
        completion(YES[:9], "content_filter"),
        completion(None, refusal="I cannot help with that."),
    ],
)
def test_a_text_that_is_kept_back_is_not_judged_and_the_others_are(stub, kept_back):
    stub.answer = lambda request: kept_back if "furious" in str(request["messages"][1]) else YES
    first, second, third = judge(stub, ["a", "furious", "b"], concurrency=1)
    assert first == third == LOUD
    assert (second.judged, second.match, second.label) == (False, False, None)
    assert len(stub.requests) == 3


def test_filters_are_told_from_refused_parameters(stub):
    stub.answer = filtering("furious", newer_openai(lambda request: YES))
    assert [verdict.judged for verdict in judge(stub, ["furious", "a"], concurrency=1)] == [False, True]


def test_a_refused_key_is_no_filter(stub):
    stub.answer = lambda request: 403
    with pytest.raises(EndpointError, match="OPENAI_API_KEY") as error:
        judge(stub, ["t"])
    assert not isinstance(error.value, FilteredByEndpoint)


# The cache


def test_verdicts_are_kept_as_they_come_and_those_that_are_missing_are_asked_again(stub, tmp_path):
    path = tmp_path / "cache.jsonl"
    stub.answer = filtering("furious", in_turn(YES, YES, 401))
    cached = CachedJudge(OpenAIJudge(Endpoint("m", stub.url, concurrency=1)), path)
    texts = ["a", "furious", "b", "c", "d"]
    with pytest.raises(EndpointError):
        cached.judge(texts, ["anger"] * 5)
    assert len(path.read_text().splitlines()) == 2
    assert set(json.loads(path.read_text().splitlines()[0])) == {"key", "match", "label", "reason"}
    stub.requests.clear()
    stub.answer = lambda request: YES
    again = CachedJudge(OpenAIJudge(Endpoint("m", stub.url, concurrency=1)), path)
    assert again.judge(texts, ["anger"] * 5) == [LOUD] * 5
    assert [request["messages"][1]["content"][-1] for request in stub.requests] == ["s", "c", "d"]


# Replies


def generate(stub, *users, max_new_tokens=100):
    backend = EndpointBackend(Endpoint("m", stub.url, concurrency=1, retries=0))
    return backend.generate([Question(Frame(system="Be calm."), user) for user in users], max_new_tokens)


def test_replies_are_asked_for_as_newer_models_want_it(stub):
    stub.answer = newer_openai(without_system_role(lambda request: "<think>hm</think> Fine."))
    assert generate(stub, "a", "b") == [Generation("Fine.", "stop")] * 2
    assert len(stub.requests) == 3 + 2


def test_a_reply_that_is_kept_back_is_empty_and_says_so(stub):
    stub.answer = filtering("furious", lambda request: "Fine.")
    assert generate(stub, "a", "furious") == [Generation("Fine.", "stop"), Generation("", FILTERED)]


def test_replies_that_end_at_the_limit_are_as_long_as_was_asked(stub):
    stub.answer = lambda request: completion("and so on", "length")
    assert generate(stub, "a") == [Generation("and so on", "length")]
    assert [request["max_tokens"] for request in stub.requests] == [100]


def test_only_thinking_gives_a_reply_more_room(stub):
    stub.answer = in_turn(completion(None, "length", reasoning_content="hm"), "Fine.")
    assert generate(stub, "a") == [Generation("Fine.", "stop")]
    stub.requests.clear()
    stub.answer = lambda request: completion(" ", "length")
    assert generate(stub, "a") == [Generation("", "length")]
    assert len(stub.requests) == 1


# This machine


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_endpoints_of_this_machine_are_asked_directly_whatever_the_proxy(stub, monkeypatch, host):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    stub.answer = lambda request: YES
    endpoint = Endpoint("m", stub.url.replace("127.0.0.1", host), retries=0)
    assert OpenAIJudge(endpoint).judge(["t"], ["anger"]) == [LOUD]
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    assert BlindOpenAIJudge(Endpoint("m", retries=0), ["anger"]).config["model"] == "m"
    assert OpenAIJudge(Endpoint("m", retries=0)).judge(["u"], ["anger"]) == [LOUD]


def test_other_endpoints_are_asked_through_the_proxy(stub, monkeypatch):
    monkeypatch.setenv("http_proxy", stub.url.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    stub.answer = lambda request: YES
    assert OpenAIJudge(Endpoint("m", "http://models.invalid/v1", retries=0)).judge(["t"], ["anger"]) == [LOUD]
    assert stub.headers[0]["host"] == "models.invalid"
