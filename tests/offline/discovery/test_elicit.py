import copy
import json

import pytest
from transformers import GenerationConfig

from emovllm.cli import main
from emovllm.errors import ElicitError, EndpointError, JudgeError, PromptError, StoredError, StyleError, TooFewError
from emovllm_offline.data.sev import DEFAULT, expand
from emovllm_offline.data.styles import Frame, Style, Turn, load_style
from emovllm_offline.discovery.elicit import elicit, load_accepted, load_replies, tasks
from emovllm_offline.discovery.survival import Reply, Survival, accepted, complete_groups, require
from emovllm_offline.endpoint.client import Endpoint
from emovllm_offline.judges.judge import Verdict
from emovllm_offline.model.generate import EndpointBackend, Generation, ModelBackend, Question, stop_tokens
from support.stub import counting, filtering, in_turn, stub_server


class Echo:
    """Replies with the end of the system prompt; stops after `calls` chunks, as an interruption does."""

    chunk = 4

    def __init__(self, calls: int | None = None) -> None:
        self.config = {"model": "echo"}
        self.asked: list[Question] = []
        self._calls = calls

    def given(self, question):
        return question

    def generate(self, questions, max_new_tokens):
        if self._calls == 0:
            raise KeyboardInterrupt
        self._calls = None if self._calls is None else self._calls - 1
        self.asked += questions
        return [Generation(f"{q.frame.system} \u2028 {q.user}", "stop") for q in questions]


class Mentions:
    """Accepts a reply that mentions its target."""

    name = "mentions"
    config = {"version": 1}  # noqa: RUF012

    def judge(self, texts, targets):
        return [Verdict(target in text, None, "r") for text, target in zip(texts, targets, strict=True)]


@pytest.fixture
def whole(records, style, tmp_path) -> bytes:
    """The file of a run that nothing interrupted."""
    elicit(Echo(), records, [style], Mentions(), tmp_path / "whole")
    return (tmp_path / "whole" / "replies.jsonl").read_bytes()


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stub_server() as running:
        yield running


@pytest.fixture
def speller(tokenizer):
    """The tokenizer with a word for every token of the tiny models, so that texts show which tokens were generated."""
    made = copy.deepcopy(tokenizer)
    made.add_tokens([f"w{i}" for i in range(len(made), 128)])
    return made


# What is asked


def test_style_that_asks_the_same_in_all_emotions_is_refused_before_anything_is_asked(records, style, tmp_path):
    same = style.model_copy(update={"emotions": dict.fromkeys(style.emotions, style.emotions["calm"])})
    echo = Echo()
    with pytest.raises(PromptError, match="same in the style told"):
        elicit(echo, records, [same], Mentions(), tmp_path / "out")
    assert not echo.asked
    assert not (tmp_path / "out").exists()


def test_model_without_a_chat_template_ends_its_reply_where_it_goes_on_with_its_user(tiny, tokenizer, monkeypatch):
    backend = ModelBackend(tiny("llama"), tokenizer, "m")
    words = tokenizer.convert_tokens_to_ids(["yes", "so", "dull"])
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: "yes \n\nUser:\n dull")
    assert backend._generation(words) == ("yes \n\nUser:\n dull", "length")
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert ModelBackend(tiny("llama"), tokenizer, "m")._generation(words) == ("yes", "stop")


def test_every_item_emotion_and_frame_is_asked_once_in_a_fixed_order(records, style):
    planned = tasks(records, [style])
    assert [(t.item.id, t.emotion, t.frame) for t in planned] == [
        (item.id, emotion, 0) for item in expand(records) for emotion in style.emotions
    ]


def test_items_take_the_frames_that_discovery_takes(records, reply_style):
    one_each = reply_style.model_copy(update={"per_item": 1})
    taken = [task.frame for task in tasks(records, [one_each]) if task.emotion == "calm"]
    assert taken == [0, 1, 0, 1, 0, 1]


def test_forced_reply_is_left_out_of_the_prompt(records):
    frames = {
        name: [Frame(system="s", turns=(Turn(user="u", assistant=name),), reply="secret")] for name in ("calm", "pride")
    }
    style = Style(name="f", description="d", neutral=Frame(system="s"), emotions=frames)
    for task in tasks(records, [style]):
        assert task.question.frame.reply is None
        assert task.given is None


def test_reply_that_alone_elicits_is_judged_as_it_stands(records, reply_style, tmp_path):
    backend = Echo()
    replies = elicit(backend, records, [reply_style], Mentions(), tmp_path)
    assert backend.asked == []
    assert {reply.finish_reason for reply in replies} == {"given"}
    assert {reply.reply for reply in replies if reply.emotion == "calm"} == {"it is well .", "so quiet you are ."}


def test_styles_must_agree_and_have_names_of_their_own(records, style, tmp_path):
    with pytest.raises(ElicitError, match="same name"):
        elicit(Echo(), records, [style, style], Mentions(), tmp_path)
    other = style.model_copy(update={"name": "other", "emotions": {"calm": style.emotions["calm"]}})
    with pytest.raises(StyleError, match="differ"):
        elicit(Echo(), records, [style, other], Mentions(), tmp_path)


# The model in process


@pytest.mark.parametrize("architecture", ["qwen2", "phi3"])
def test_batch_generates_what_its_members_generate_alone(architecture, tiny, speller):
    backend = ModelBackend(tiny(architecture), speller, "tiny")
    questions = [
        Question(Frame(system=system), f"the {animal} {'walks home ' * i}.")
        for i, (system, animal) in enumerate([("reply .", "dog"), ("always reply in calm .", "cat"), ("so", "dog")])
    ]
    together = backend.generate(questions, 12)
    assert together == [backend.generate([question], 12)[0] for question in questions]
    assert len({text for text, _ in together}) == 3
    assert all(len(text.split()) > 2 for text, _ in together)


def test_reply_ends_at_the_models_own_stop_tokens(tiny, speller):
    model = tiny("qwen2")
    question = Question(Frame(system="reply ."), "the dog walks .")
    words = ModelBackend(model, speller, "tiny").generate([question], 12)[0].text.split()
    assert words[3] not in words[:3]
    stop = speller.convert_tokens_to_ids(words[3])
    model.generation_config = GenerationConfig(eos_token_id=[2, stop])
    assert ModelBackend(model, speller, "tiny").generate([question], 12) == [Generation(" ".join(words[:3]), "stop")]
    assert stop_tokens(model, speller) == {2, stop}


def test_models_own_sampling_and_penalties_are_not_used(tiny, speller):
    model = tiny("qwen2")
    question = Question(Frame(system="reply ."), "the dog walks .")
    plain = ModelBackend(model, speller, "tiny").generate([question], 16)
    theirs = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, eos_token_id=2)
    model.generation_config = theirs
    assert ModelBackend(model, speller, "tiny").generate([question], 16) == plain
    assert model.generation_config is theirs


def test_reply_that_is_cut_says_so(tiny, speller):
    (generation,) = ModelBackend(tiny("qwen2"), speller, "tiny").generate([Question(Frame(), "the dog .")], 2)
    assert generation.finish_reason == "length"


# An endpoint


def test_endpoint_gets_the_chat_of_the_frame(stub):
    backend = EndpointBackend(Endpoint("m", stub.url))
    frame = Frame(system="s", turns=(Turn(user="u", assistant="a"),))
    assert backend.generate([Question(frame, "hello")], 100) == [Generation("fine", "stop")]
    (request,) = stub.requests
    assert [(m["role"], m["content"]) for m in request["messages"]] == [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a"),
        ("user", "hello"),
    ]
    assert (request["max_tokens"], request["temperature"]) == (100, 0)
    assert "127.0.0.1" not in json.dumps(dict(backend.config))


@pytest.mark.parametrize("drops", [False, True])
def test_endpoint_whose_template_drops_the_system_message_gets_it_in_the_user_message(stub, drops):
    def shown(message):
        return "" if drops and message["role"] == "system" else message["content"]

    stub.answer = counting(shown, lambda request: " ".join(map(shown, request["messages"])))
    backend = EndpointBackend(Endpoint("m", stub.url))
    questions = [Question(Frame(system=f"reply in {name} ."), "hello") for name in ("calm", "pride")]
    for asked in (5 if drops else 3, 2):
        before = len(stub.requests)
        texts = [" ".join(reply.text.split()) for reply in backend.generate(questions, 100)]
        assert texts == [
            "reply in calm . hello",
            "reply in pride . hello",
        ]
        assert len(stub.requests) - before == asked
    assert stub.requests[-1]["messages"][0]["role"] == ("user" if drops else "system")


@pytest.mark.parametrize("concurrency", [1, 4])
def test_endpoint_is_not_asked_more_at_a_time_than_allowed(stub, records, style, tmp_path, concurrency):
    stub.delay = 0.15
    backend = EndpointBackend(Endpoint("m", stub.url, concurrency=concurrency))
    elicit(backend, records[:1], [style], Mentions(), tmp_path)
    assert len(stub.requests) == 9
    assert stub.most_busy <= concurrency
    assert concurrency == 1 or stub.most_busy > 1


def test_run_that_met_a_failing_endpoint_is_continued(stub, records, style, tmp_path):
    def backend():
        made = EndpointBackend(Endpoint("m", stub.url, concurrency=2, retries=1))
        made.chunk = 4
        return made

    stub.answer = in_turn(*["fine"] * 6, 429, "fine", 500)
    with pytest.raises(EndpointError, match="status 500"):
        elicit(backend(), records, [style], Mentions(), tmp_path)
    assert len(load_replies(tmp_path / "replies.jsonl")) == 4
    stub.answer = lambda request: "fine"
    assert len(elicit(backend(), records, [style], Mentions(), tmp_path)) == 18


# Interruption


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_continued_run_ends_with_the_same_file(records, style, tmp_path, whole, calls):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        elicit(Echo(calls), records, [style], Mentions(), out)
    backend = Echo()
    replies = elicit(backend, records, [style], Mentions(), out)
    assert len(backend.asked) == 18 - 4 * calls
    assert (out / "replies.jsonl").read_bytes() == whole
    assert load_replies(out / "replies.jsonl") == replies


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.77, 0.999])
def test_truncated_file_is_continued_to_the_same_bytes(records, style, tmp_path, whole, kept):
    out = tmp_path / "out"
    elicit(Echo(), records, [style], Mentions(), out)
    (out / "replies.jsonl").write_bytes(whole[: int(kept * len(whole))])
    elicit(Echo(), records, [style], Mentions(), out)
    assert (out / "replies.jsonl").read_bytes() == whole


def test_continued_run_of_a_model_ends_with_the_same_file(records, style, tmp_path, tiny, tokenizer):
    def backend():
        return ModelBackend(tiny("llama"), tokenizer, "tiny", batch_size=4)

    elicit(backend(), records, [style], Mentions(), tmp_path, max_new_tokens=6)
    path = tmp_path / "replies.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    elicit(backend(), records, [style], Mentions(), tmp_path, max_new_tokens=6)
    assert path.read_bytes() == whole


def test_finished_run_asks_nothing_again(records, style, tmp_path):
    first = elicit(Echo(), records, [style], Mentions(), tmp_path)
    assert elicit(Echo(calls=0), records, [style], Mentions(), tmp_path) == first


def test_changed_inputs_are_refused_and_named(records, style, tmp_path):
    elicit(Echo(), records, [style], Mentions(), tmp_path)
    before = (tmp_path / "replies.jsonl").read_bytes()
    other_judge = Mentions()
    other_judge.config = {"version": 2}
    other_model = Echo()
    other_model.config = {"model": "other"}
    other_style = style.model_copy(update={"neutral": Frame(system="be brief .")})
    for arguments, options, name in (
        ((Echo(), records[:1], [style], Mentions()), {}, "data"),
        ((Echo(), records, [other_style], Mentions()), {}, "styles"),
        ((other_model, records, [style], Mentions()), {}, "backend"),
        ((Echo(), records, [style], other_judge), {}, "judge"),
        ((Echo(), records, [style], Mentions()), {"max_new_tokens": 5}, "max_new_tokens"),
    ):
        with pytest.raises(StoredError, match=f"other settings: {name};"):
            elicit(*arguments, tmp_path, **options)
    assert (tmp_path / "replies.jsonl").read_bytes() == before


def test_files_that_are_not_of_the_run_are_refused(records, style, tmp_path, whole):
    out = tmp_path / "out"
    elicit(Echo(), records, [style], Mentions(), out)
    path = out / "replies.jsonl"
    lines = whole.decode().split("\n")[:-1]
    for content, message in (
        ([lines[1], lines[0]], "line 1: not the reply that belongs there"),
        ([lines[0], "{}"], r"line 2: damaged \(item: Field required\)"),
        ([*lines, lines[0]], "more replies than the run"),
    ):
        path.write_text("\n".join(content) + "\n")
        with pytest.raises(StoredError, match=message):
            elicit(Echo(), records, [style], Mentions(), out)
    (out / "elicit.json").unlink()
    with pytest.raises(StoredError, match=r"no elicit\.json"):
        elicit(Echo(), records, [style], Mentions(), out)


def test_line_holds_what_is_needed_to_trace_a_reply(whole):
    assert set(json.loads(whole.split(b"\n")[0])) == {
        "item",
        "emotion",
        "style",
        "frame",
        "prompt",
        "reply",
        "finish_reason",
        "judge",
        "match",
        "label",
        "reason",
    }


# Who survived


def reply(item: str, emotion: str, match: int, style: str = "told", frame: int = 0) -> Reply:
    return Reply(
        item=item,
        emotion=emotion,
        style=style,
        frame=frame,
        prompt="",
        reply="t",
        finish_reason="stop",
        judge="j",
        match=match,
        label=None,
        reason="",
    )


REPLIES = [
    reply("a", "calm", 1),
    reply("a", "calm", 0, frame=1),
    reply("a", "pride", 1),
    reply("a", "pride", 1, frame=1),
    reply("b", "calm", 1),
    reply("b", "pride", 0),
    reply("b", "calm", 0, style="role"),
    reply("b", "pride", 1, style="role"),
    reply("c", "calm", 0),
    reply("c", "pride", 0),
    reply("c", "calm", 1, style="role"),
    reply("c", "pride", 1, style="role"),
]


def test_group_is_complete_when_every_emotion_was_accepted():
    assert complete_groups(REPLIES) == {"a", "c"}


def test_emotions_of_two_styles_do_not_complete_one_another():
    assert "b" not in accepted(REPLIES)


def test_accepted_frames_are_those_of_complete_groups():
    assert accepted(REPLIES) == {
        "a": {"told": {"calm": {0: "t"}, "pride": {0: "t", 1: "t"}}},
        "c": {"role": {"calm": {0: "t"}, "pride": {0: "t"}}},
    }


class Shy(Mentions):
    """Judges no reply of a cat."""

    def judge(self, texts, targets):
        verdicts = super().judge(texts, targets)
        return [
            Verdict.unjudged("filtered") if "cat" in text else verdict
            for text, verdict in zip(texts, verdicts, strict=True)
        ]


def test_replies_that_cannot_be_judged_are_told_and_count_as_neither(records, style, tmp_path, capsys):
    replies = elicit(Echo(), records, [style], Shy(), tmp_path)
    gaps = [reply for reply in replies if reply.match is None]
    assert gaps
    assert all("cat" in reply.reply for reply in gaps)
    assert load_replies(tmp_path / "replies.jsonl") == replies
    survival = Survival.of(replies)
    counts = [sum(of[style.name].values()) for of in (survival.accepted, survival.judged, survival.unjudged)]
    assert counts == [len(replies) - len(gaps), len(replies) - len(gaps), len(gaps)]
    assert all(survival.rate(emotion) == 1 for emotion in survival.emotions())
    assert not {reply.item for reply in gaps} & set(accepted(replies))
    survival.print()
    assert "not judged" in capsys.readouterr().out


@pytest.mark.parametrize("calls", [None, 3])
def test_what_could_not_be_judged_is_judged_again(records, style, tmp_path, whole, calls):
    """Of a finished run and of one that was interrupted, without asking the model again."""
    if calls is None:
        elicit(Echo(), records, [style], Shy(), tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            elicit(Echo(calls), records, [style], Shy(), tmp_path)
    path = tmp_path / "replies.jsonl"
    before = load_replies(path)
    assert any(reply.match is None for reply in before)
    # A judge that still cannot changes nothing.
    if calls is None:
        elicit(Echo(0), records, [style], Shy(), tmp_path)
        assert load_replies(path) == before
    judge, backend = Counting(), Echo()
    replies = elicit(backend, records, [style], judge, tmp_path)
    assert path.read_bytes() == whole
    assert load_replies(path) == replies
    assert len(backend.asked) == len(replies) - len(before)
    assert judge.judged == sum(reply.match is None for reply in before) + len(backend.asked)


class Counting(Mentions):
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.judged = 0

    def judge(self, texts, targets):
        self.judged += len(texts)
        return super().judge(texts, targets)


def test_a_run_of_which_nothing_was_judged_is_an_error(records, style, tmp_path):
    replies = elicit(Echo(), records, [style], Shy(), tmp_path)
    with pytest.raises(JudgeError, match="could judge no reply, the first because: filtered"):
        Survival.of([reply for reply in replies if reply.match is None])


def test_a_reply_that_the_endpoint_keeps_back_is_not_judged(stub, records, style, tmp_path):
    stub.answer = filtering("cat", lambda request: "calm")
    backend = EndpointBackend(Endpoint("m", stub.url))
    replies = elicit(backend, records, [style], Mentions(), tmp_path)
    assert {(reply.finish_reason, reply.reply, reply.match is None) for reply in replies} == {
        ("stop", "calm", False),
        ("content_filter", "", True),
    }
    # There is nothing to judge again either.
    judge = Counting()
    assert elicit(backend, records, [style], judge, tmp_path) == replies
    assert judge.judged == 0


def test_survival_counts_by_style_and_emotion(tmp_path, capsys):
    survival = Survival.of(REPLIES)
    assert survival.accepted == {"told": {"calm": 2, "pride": 2}, "role": {"calm": 1, "pride": 2}}
    assert survival.judged == {"told": {"calm": 4, "pride": 4}, "role": {"calm": 2, "pride": 2}}
    assert (survival.items, survival.complete_items, survival.complete) == (3, 2, {"told": 1, "role": 1})
    survival.save(tmp_path / "survival.json")
    assert Survival(**json.loads((tmp_path / "survival.json").read_text())) == survival
    survival.print()
    printed = capsys.readouterr().out
    assert "2 of 4" in printed
    assert "1 of 3" in printed


def test_too_few_groups_are_refused_with_advice():
    survival = Survival.of(REPLIES)
    require(survival, minimum=2)
    with pytest.raises(TooFewError) as error:
        require(survival, minimum=3)
    assert str(error.value).startswith(
        "2 of 3 scenario-events were accepted in every emotion, 3 are needed. "
        "Accepted least: calm (50%). Try an elicitation style of your own"
    )
    assert "another judge than j" in str(error.value)
    assert "larger model" in str(error.value)
    of_role = [reply("a", emotion, 0, style="role") for emotion in load_style("role").emotions]
    with pytest.raises(TooFewError, match=r"another elicitation style \(--style fewshot or paper or replies\)"):
        require(Survival.of(of_role), minimum=1)


def test_advice_asks_for_more_scenarios_where_no_style_could_help():
    with pytest.raises(TooFewError, match="more scenarios: 3 scenario-events cannot give 12 groups"):
        require(Survival.of(REPLIES))


def test_discovery_can_take_up_a_finished_run_of_its_own_inputs(records, style, tmp_path):
    replies = iter(elicit(Echo(), records, [style], Mentions(), tmp_path))
    groups = load_accepted(tmp_path, records, [style])
    assert groups == {
        item.id: {"told": {emotion: {0: next(replies).reply} for emotion in style.emotions}} for item in expand(records)
    }
    with pytest.raises(ElicitError, match="other data"):
        load_accepted(tmp_path, records[:1], [style])
    with pytest.raises(ElicitError, match="other styles"):
        load_accepted(tmp_path, records, [style.model_copy(update={"per_item": 2})])
    path = tmp_path / "replies.jsonl"
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes().split(b"\n")[-2]) - 1])
    with pytest.raises(ElicitError, match="not finished"):
        load_accepted(tmp_path, records, [style])
    with pytest.raises(ElicitError, match="holds no elicitation run"):
        load_accepted(tmp_path / "elsewhere", records, [style])


# The command


def run_command(*words: str) -> int:
    return main(["elicit", *words])


def test_command_elicits_in_process_and_refuses_when_nothing_survives(tiny, tokenizer, tmp_path, capsys):
    tiny("llama").save_pretrained(tmp_path / "model")
    knowing = copy.deepcopy(tokenizer)
    knowing.add_tokens(["anger.", "fear."])
    knowing.save_pretrained(tmp_path / "model")
    words = (str(tmp_path / "model"), "--limit", "1", "--max-new-tokens", "2", "--out", str(tmp_path / "out"))
    assert run_command(*words, "--batch-size", "4") == 2
    printed = capsys.readouterr()
    assert "0 of 3 scenario-events" in printed.err
    assert "accepted by lexicon" in printed.out
    assert json.loads((tmp_path / "out" / "survival.json").read_text())["items"] == 3
    assert str(tmp_path) not in (tmp_path / "out" / "elicit.json").read_text()


@pytest.mark.parametrize("judge", ["openai", "openai-blind"])
def test_command_elicits_and_judges_through_endpoints(stub, tmp_path, monkeypatch, judge):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    def answer(request):
        if request["model"] == "writer":
            return request["messages"][0]["content"].split()[3].rstrip(".")  # "Always reply in fear."
        seen = request["messages"][1]["content"].rsplit("\n", 1)[1]
        return json.dumps({"match": 1, "label": seen, "reason": "r"})

    stub.answer = answer
    out = tmp_path / "out"
    words = (
        "writer",
        "--base-url",
        stub.url,
        "--judge",
        judge,
        "--judge-model",
        "critic",
        "--judge-base-url",
        stub.url,
        "--limit",
        "2",
        "--minimum",
        "6",
        "--out",
        str(out),
        "--data",
        DEFAULT,
    )
    assert run_command(*words) == 0
    replies = load_replies(out / "replies.jsonl")
    assert len(complete_groups(replies)) == 6
    assert {reply.label for reply in replies} == ({None} if judge == "openai" else {r.emotion for r in replies})
    for path in out.iterdir():
        assert "secret" not in path.read_text()
        assert "127.0.0.1" not in path.read_text()
    asked = len(stub.requests)
    assert run_command(*words) == 0
    assert len(stub.requests) == asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "0"), "--limit must be above 0"),
        (("--concurrency", "0"), "--concurrency must be above 0"),
        (("--judge", "openai"), "needs --judge-model"),
        (("--judge", "nonesuch"), "no judge nonesuch: choose from hf, lexicon, llm, local"),
        (("--judge-labels", "joy"), "expected THEIRS=OURS with commas between, got 'joy'"),
        (("--style", "nonesuch"), "no style 'nonesuch'"),
        (("--data", "nonesuch.jsonl"), "nonesuch.jsonl"),
        (("--lexicon", "nonesuch.json"), "nonesuch.json"),
    ],
)
def test_command_tells_mistakes_in_a_line_before_it_loads_a_model(words, message, tmp_path, capsys):
    assert run_command("/no/model", "--out", str(tmp_path / "out"), *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
