import json

import pytest

from emovllm.errors import EndpointError, JudgeError, RefusedByEndpoint, StoredError
from emovllm_offline.data.styles import common_emotions, load_style
from emovllm_offline.endpoint.client import Endpoint
from emovllm_offline.judges.judge import CachedJudge, Verdict
from emovllm_offline.judges.lexicon import LexiconJudge, load_lexicon
from emovllm_offline.judges.openai import REMINDER, BlindOpenAIJudge, OpenAIJudge
from support.stub import in_turn, stub_server

EMOTIONS = common_emotions([load_style("paper")])

# Replies of the kind that models give, written before the lexicon was first run on them and not used to tune it.
# The ones that say it without a telling word are here on purpose.
HELD_OUT = {
    "anger": [
        "This is the third time you have lost my order, and I will not tolerate it any longer!",
        "How dare they move the deadline without a word to anyone on the team!",
        "I am absolutely livid that nobody bothered to call me back.",
        "Are you kidding me? I paid for this room months ago and now you give it away!",
        "Get out of my sight and take your pathetic excuses with you.",
        "My blood is boiling, because that was my promotion and he simply stole it.",
        "I've had it with this company, its lies and its useless hotline.",
        "You had one job, one single job, and you still managed to ruin my whole week!",
    ],
    "sadness": [
        "My heart is heavy, for the house where I grew up now stands empty.",
        "I keep looking at her chair, and the tears will not stop.",
        "It hurts so much to know that we will never speak again.",
        "I feel so alone tonight, as if nobody would notice were I gone.",
        "All that work for nothing; I just want to curl up and weep.",
        "I can't find any comfort in it, only a dull ache where hope used to be.",
        "What is the use of trying, when everything I care for slips through my fingers?",
        "Oh, how I miss the days when we all sat around that table.",
    ],
    "happiness": [
        "Oh, this is wonderful news, I could dance all the way home!",
        "I'm so thrilled that the flight left on time, let's celebrate!",
        "What a beautiful morning, and what a treat to share it with you!",
        "You have made my day, and I can't stop smiling.",
        "Yes! My hard work paid off, and I am grinning from ear to ear.",
        "I feel so lucky to have neighbours like you, thank you from the bottom of my heart!",
        "Life is good, the coffee is hot and my results are excellent!",
        "Congratulations to us, this calls for cake and a big party!",
    ],
    "fear": [
        "I am shaking, what if the results come back worse than before?",
        "Please don't leave me alone here, I think someone is behind that door.",
        "My heart is racing and I can't breathe when I think of the interview.",
        "Oh no, oh no, what if they fire me for this?",
        "I lie awake at night, terrified of the next letter from the landlord.",
        "Something is not right, we should get out of here before it is too late.",
        "I'm so nervous about the exam that my hands won't keep still.",
        "I dread the moment when the doctor opens that envelope.",
    ],
    "surprise": [
        "Wow, I never saw that coming!",
        "Wait, what? They gave the flat to me, just like that?",
        "I can't believe my eyes, the parcel is already here!",
        "No way, you met the mayor at the bus stop?",
        "I am speechless, of all the people it had to be my old teacher!",
        "My jaw dropped when the clerk said it was free.",
        "Really? I had no idea that the office was even open today!",
        "Good heavens, the train was early, when has that ever happened before?",
    ],
    "disgust": [
        "Yuck, there was a hair in the soup and it was still moving.",
        "The smell from that fridge makes me want to throw up.",
        "How revolting, the towels had stains from the last guest.",
        "Ugh, keep that slimy thing away from me.",
        "I feel nauseous just looking at that carpet.",
        "That is the most repulsive bathroom I have ever set foot in.",
        "I had to wash my hands three times after touching that door handle, it was so filthy.",
        "He picked it up from the floor and ate it, and I nearly lost my lunch.",
    ],
    "neutral": [
        "The meeting was moved to Thursday at ten, and the room stays the same.",
        "You can hand in the form at the second counter on the ground floor.",
        "It may help to note the reference number before you call.",
        "The bus leaves every twenty minutes from the stop across the road.",
        "Your request was received, and an answer usually takes two days.",
        "I suggest that you compare both offers and then decide.",
        "The landlord will send the new contract by post next week.",
        "There are three trains in the afternoon, and the last one runs at six.",
    ],
}


@pytest.fixture
def lexicon_judge() -> LexiconJudge:
    return LexiconJudge(EMOTIONS)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stub_server() as running:
        yield running


# The word list


def test_every_emotion_of_the_styles_has_its_words():
    lexicon = load_lexicon()
    assert set(lexicon.emotions) == set(EMOTIONS)
    for emotion, by_weight in lexicon.emotions.items():
        assert len({entry for entries in by_weight.values() for entry in entries}) >= 60, emotion


def test_word_list_labels_held_out_replies(lexicon_judge):
    right = {
        label: sum(verdict.label == label for verdict in lexicon_judge.judge(texts, [label] * len(texts)))
        for label, texts in HELD_OUT.items()
    }
    # 49 of 56 when first measured; by emotion it is weakest in anger, 5 of 8.
    assert sum(right.values()) >= 48, right
    assert min(right.values()) >= 5, right


def test_word_list_says_what_it_found(lexicon_judge):
    (verdict,) = lexicon_judge.judge(["I am furious, and a bit tired!"], ["sadness"])
    assert verdict == Verdict(False, "anger", "anger 3, sadness 1")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I am happy.", "happiness"),
        ("I am not happy.", "neutral"),
        ("I don't feel very happy.", "neutral"),
        ("There is no reason at all to be happy.", "happiness"),  # out of the negation's reach
        ("No, I am happy.", "happiness"),  # in another clause
        ("I cannot stop laughing.", "happiness"),
        ("I can\u2019t believe how happy this makes me, I am so glad!", "happiness"),
        ("I have never been so happy.", "happiness"),
    ],
)
def test_negation_reaches_three_words_within_its_clause(lexicon_judge, text, label):
    (verdict,) = lexicon_judge.judge([text], ["happiness"])
    assert (verdict.label, verdict.match) == (label, label == "happiness"), verdict.reason


def test_repeated_marks_tip_the_scales_but_are_no_emotion_by_themselves(lexicon_judge):
    assert lexicon_judge.judge(["The door is open!!!"], ["happiness"])[0].label == "neutral"
    plain, marked = (lexicon_judge.scores(text)["surprise"] for text in ("Is it open?", "Is it open?!?!"))
    assert marked > plain == 0


def test_repetition_counts_once(lexicon_judge):
    assert lexicon_judge.scores("so sorry. " * 20) == lexicon_judge.scores("so sorry.")


def test_even_scores_are_neutral(lexicon_judge):
    assert lexicon_judge.judge(["I am angry. I am sad."], ["anger"])[0].label == "neutral"


@pytest.mark.parametrize("text", ["", " ", "12 % _ - 34", "?!", "\u4f60\u597d"])
def test_texts_without_words_are_neutral(lexicon_judge, text):
    (verdict,) = lexicon_judge.judge([text], ["anger"])
    assert (verdict.match, verdict.label) == (False, "neutral")


def test_other_emotions_come_with_their_own_words(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"threshold": 1, "emotions": {"pride": {"2": ["proud*"]}, "calm": {"1": ["at ease", "quiet"]}}}')
    judge = LexiconJudge(["calm", "pride"], load_lexicon(path))
    assert [v.label for v in judge.judge(["I am proudest.", "I am at ease.", "at, ease"], ["calm"] * 3)] == [
        "pride",
        "calm",
        "neutral",
    ]
    with pytest.raises(JudgeError, match="no words for envy"):
        LexiconJudge(["calm", "envy"], load_lexicon(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"threshold": 0, "emotions": {"calm": {"1": ["a"]}}}', "threshold"),
        ('{"threshold": 1, "emotions": {"calm": {"1": ["12"]}}}', "'12' has no word"),
    ],
)
def test_word_lists_that_cannot_be_used_name_the_file(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(JudgeError, match=rf"mine\.json: .*{message}"):
        load_lexicon(path)


def test_a_word_list_that_an_editor_saved_again_is_the_same(tmp_path):
    path = tmp_path / "mine.json"
    text = '{"threshold": 1,\n "emotions": {"calm": {"1": ["at ease"]}}}\n'
    path.write_text(text)
    plain = load_lexicon(path)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_lexicon(path) == plain


# Models as judges


def test_told_judge_shows_the_target_and_the_text_alone(stub):
    stub.answer = lambda request: '{"match": 1, "reason": "shouting"}'
    (verdict,) = OpenAIJudge(Endpoint("m", stub.url)).judge(["Go away!"], ["anger"])
    assert verdict == Verdict(True, None, "shouting")
    (request,) = stub.requests
    assert request["model"] == "m"
    assert request["temperature"] == 0
    assert request["response_format"]["type"] == "json_schema"
    assert request["messages"][1]["content"] == "Target emotion: anger\nText:\nGo away!"


def test_blind_judge_is_not_told_the_target(stub):
    stub.answer = lambda request: '{"label": "Fear", "reason": "r"}'
    judge = BlindOpenAIJudge(Endpoint("m", stub.url), ["fear", "anger"])
    assert judge.judge(["Help!", "Help?"], ["fear", "anger"]) == [
        Verdict(True, "fear", "r"),
        Verdict(False, "fear", "r"),
    ]
    assert "anger, fear, neutral" in stub.requests[0]["messages"][0]["content"]
    assert sorted(request["messages"][1]["content"] for request in stub.requests) == ["Text:\nHelp!", "Text:\nHelp?"]


def test_servers_that_know_fewer_formats_are_asked_for_less(stub):
    def answer(request):
        return 400 if "response_format" in request else 'Sure: {"match": 0, "reason": "calm"} Anything else?'

    stub.answer = answer
    judge = OpenAIJudge(Endpoint("m", stub.url, concurrency=1))
    assert judge.judge(["a", "b"], ["anger"] * 2) == [Verdict(False, None, "calm")] * 2
    formats = [request.get("response_format", {}).get("type") for request in stub.requests]
    assert formats == ["json_schema", "json_object", None, None]  # what was learnt is kept


def test_refusals_step_down_once_each_when_they_come_together(stub):
    stub.answer = lambda request: (
        400
        if request.get("response_format", {}).get("type") == "json_schema"
        else ('{"match": 1, "reason": ""}' if "response_format" in request else 500)
    )
    stub.delay = 0.05
    assert all(v.match for v in OpenAIJudge(Endpoint("m", stub.url)).judge(["t"] * 6, ["anger"] * 6))


def test_request_that_is_refused_in_every_format_is_an_error(stub):
    stub.answer = lambda request: 400
    with pytest.raises(RefusedByEndpoint, match="told to fail with 400"):
        OpenAIJudge(Endpoint("m", stub.url)).judge(["t"], ["anger"])


def test_invalid_answers_are_asked_again(stub):
    stub.answer = in_turn("It matches.", '{"match": 7}', '{"match": true, "reason": "loud"}')
    assert OpenAIJudge(Endpoint("m", stub.url)).judge(["t"], ["anger"]) == [Verdict(True, None, "loud")]
    assert [message["content"] for message in stub.requests[-1]["messages"][2:]] == ['{"match": 7}', REMINDER]


def test_judge_that_never_answers_validly_is_an_error(stub):
    stub.answer = lambda request: '{"label": "boredom"}'
    with pytest.raises(JudgeError, match=r"m gave no valid verdict in 3 tries, at last: .*boredom"):
        BlindOpenAIJudge(Endpoint("m", stub.url), ["fear"]).judge(["t"], ["fear"])
    assert len(stub.requests) == 3


def test_empty_replies_match_nothing_and_are_not_sent(stub):
    assert not OpenAIJudge(Endpoint("m", stub.url)).judge([" "], ["anger"])[0].match
    assert stub.requests == []


# Endpoints


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(stub, status):
    stub.answer = in_turn(status, status, '{"match": 1, "reason": "r"}')
    assert OpenAIJudge(Endpoint("m", stub.url)).judge(["t"], ["anger"])[0].match
    assert len(stub.requests) == 3


def test_slow_servers_are_asked_again(stub):
    def answer(request):
        stub.delay = 0
        return '{"match": 1, "reason": "r"}'

    stub.delay, stub.answer = 0.6, answer
    assert OpenAIJudge(Endpoint("m", stub.url, timeout=0.3)).judge(["t"], ["anger"])[0].match


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (500, "failed with status 500"),
        (401, "OPENAI_API_KEY"),
        (404, "no model 'm'"),
        (b"<html>", "not that of an OpenAI-compatible server"),
        (b"{}", "not that of an OpenAI-compatible server"),
        (b"[]", "not that of an OpenAI-compatible server"),
    ],
)
def test_failures_are_told_in_a_line(stub, answer, message):
    stub.answer = lambda request: answer
    with pytest.raises(EndpointError, match=message):
        OpenAIJudge(Endpoint("m", stub.url, retries=1)).judge(["t"], ["anger"])


def test_nobody_there_is_told_in_a_line():
    with pytest.raises(EndpointError, match="cannot reach"):
        OpenAIJudge(Endpoint("m", "http://127.0.0.1:9/v1", retries=0)).judge(["t"], ["anger"])


def test_key_comes_from_the_environment_and_stays_out_of_errors_and_files(stub, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    stub.answer = in_turn('{"match": 1, "reason": "r"}', 401)
    judge = CachedJudge(OpenAIJudge(Endpoint("m", stub.url)), tmp_path / "cache.jsonl")
    judge.judge(["t"], ["anger"])
    assert stub.headers[0]["authorization"] == "Bearer sk-very-secret"
    with pytest.raises(EndpointError) as error:
        judge.judge(["u"], ["anger"])
    for text in (str(error.value), (tmp_path / "cache.jsonl").read_text(), json.dumps(dict(judge.config))):
        assert "secret" not in text
        assert "127.0.0.1" not in text


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_at_a_time_are_bounded(stub, concurrency):
    stub.delay, stub.answer = 0.1, lambda request: '{"match": 1, "reason": ""}'
    OpenAIJudge(Endpoint("m", stub.url, concurrency=concurrency)).judge(["t"] * 9, ["anger"] * 9)
    assert stub.most_busy <= concurrency
    assert concurrency == 1 or stub.most_busy > 1


def test_answers_keep_the_order_of_their_questions(stub):
    stub.answer = lambda request: json.dumps({"match": 1, "reason": request["messages"][1]["content"][-1]})
    texts = list("abcdefgh")
    assert [v.reason for v in OpenAIJudge(Endpoint("m", stub.url)).judge(texts, ["anger"] * 8)] == texts


# The cache


def test_known_answers_make_no_request(stub, tmp_path):
    stub.answer = lambda request: '{"match": 1, "reason": "r"}'
    ask = (["a", "b", "a"], ["anger", "anger", "anger"])
    first = CachedJudge(OpenAIJudge(Endpoint("m", stub.url)), tmp_path / "cache.jsonl").judge(*ask)
    assert len(stub.requests) == 2
    again = CachedJudge(OpenAIJudge(Endpoint("m", stub.url)), tmp_path / "cache.jsonl")
    assert again.judge(*ask) == first
    assert len(stub.requests) == 2


def test_other_text_target_model_or_judge_is_asked_anew(stub, tmp_path):
    stub.answer = lambda request: '{"match": 1, "label": "anger", "reason": "r"}'
    path = tmp_path / "cache.jsonl"
    for judge in (
        OpenAIJudge(Endpoint("m", stub.url)),
        OpenAIJudge(Endpoint("n", stub.url)),
        BlindOpenAIJudge(Endpoint("m", stub.url), ["anger"]),
        BlindOpenAIJudge(Endpoint("m", stub.url), ["anger", "fear"]),
    ):
        CachedJudge(judge, path).judge(["a"], ["anger"])
    CachedJudge(OpenAIJudge(Endpoint("m", stub.url)), path).judge(["a", "b", "a"], ["anger", "anger", "fear"])
    assert len(stub.requests) == 6
    assert len(path.read_text().splitlines()) == 6


def test_a_blind_judge_is_asked_about_a_text_once_whatever_the_targets(stub, tmp_path):
    stub.answer = lambda request: '{"label": "fear", "reason": "r"}'
    judge = CachedJudge(BlindOpenAIJudge(Endpoint("m", stub.url), ["anger", "fear"]), tmp_path / "cache.jsonl")
    verdicts = judge.judge(["a", "a", "b", " ", " "], ["anger", "fear", "fear", "anger", "fear"])
    assert [verdict.match for verdict in verdicts] == [False, True, True, False, False]
    assert [verdict.label for verdict in verdicts] == ["fear", "fear", "fear", None, None]
    assert len(stub.requests) == 2
    again = CachedJudge(BlindOpenAIJudge(Endpoint("m", stub.url), ["anger", "fear"]), tmp_path / "cache.jsonl")
    assert again.judge(["a", "b"], ["fear", "fear"]) == verdicts[1:3]
    assert len(stub.requests) == 2


class Counting:
    name = "counting"
    config: dict = {}  # noqa: RUF012

    def __init__(self):
        self.asked = []

    def judge(self, texts, targets):
        self.asked += texts
        return [Verdict(True, None, "line\u2028separator") for _ in texts]


def test_cache_that_was_cut_off_loses_its_last_line_alone(tmp_path):
    path = tmp_path / "cache.jsonl"
    CachedJudge(Counting(), path).judge(["a", "b"], ["x", "x"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    judge = Counting()
    CachedJudge(judge, path).judge(["a", "b"], ["x", "x"])
    assert judge.asked == ["b"]
    assert path.read_bytes() == whole


def test_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "cache.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(StoredError, match=r"cache\.jsonl, line 1"):
        CachedJudge(Counting(), path)
