import pytest

from emovllm.cli import main
from emovllm.errors import OwnRepliesError, StoredError
from emovllm_offline.data.examples import Example, load_examples
from emovllm_offline.judges.lexicon import LexiconJudge, load_lexicon
from emovllm_offline.refinement import own_replies
from emovllm_offline.refinement.own_replies import CHUNK, choose, worth_learning
from emovllm_offline.refinement.sampling import Sample, Samples
from emovllm_offline.refinement.settings import OwnRepliesSettings, Sampling, Sifting
from support.circuits import SIX, random_circuit
from support.models import tiny_model

ANGRY = "I am furious about this message, it makes me so angry."
ANGRIER = "Such messages are outrageous, I am so angry that I could scream."
LEXICON = LexiconJudge(SIX)


def sample(text, tokens=None):
    return Sample(text=text, tokens=tokens or tuple(range(len(text.split()))))


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    place = tmp_path_factory.mktemp("own")
    return random_circuit(tiny_model(place / "model"), place / "circuit")


@pytest.fixture
def given(tmp_path):
    """A file of messages with written replies."""
    path = tmp_path / "given.jsonl"
    lines = [
        Example(id=str(i), user=f"message {i}", replies={name: f"written {name}" for name in SIX}).model_dump_json()
        for i in range(2 * CHUNK + 3)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


class Fake:
    """Replies in anger alone, two of them; counts what it was asked."""

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = [], stop_after

    def sampler(self):
        def sampled(some):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked += [number for number, _ in some]
            return [
                Samples(id=example.id, replies={"anger": (sample(ANGRY), sample(ANGRIER)), "fear": ()})
                for _, example in some
            ]

        return sampled

    def scorer(self):
        # The second is the likelier of the two, to odd messages.
        return lambda number, example, emotion, replies: [1.0, 0.5 if number % 2 else 2.0][: len(replies)]


SAMPLING = Sampling()


def run(given, circuit, tmp_path, fake, sampling=SAMPLING, **more):
    return own_replies.run(
        "default",
        circuit,
        tmp_path / "own.jsonl",
        OwnRepliesSettings(replies=str(given), **more),
        sampling,
        progress=False,
        make_sampler=fake.sampler,
        make_scorer=fake.scorer,
    )


def test_only_replies_that_show_the_emotion_speak_of_the_message_and_do_not_loop_are_learnt_from():
    bad = [
        sample("What a pleasant message we had by the lake."),
        sample("I am terrified of the next message, so scared."),
        sample("I am furious: messages!"),
        sample("I am furious about that, it makes me so angry."),
        sample(ANGRY, (1, 2, 3, 4, 1, 2, 3, 9)),
    ]
    message = "Your message came, and I read it."
    assert worth_learning([*bad, sample(ANGRY)], message, "anger", LEXICON) == [sample(ANGRY)]
    assert worth_learning(bad, message, "anger", LEXICON) == []
    assert worth_learning([], message, "anger", LEXICON) == []


def test_the_likeliest_is_chosen_and_the_written_one_stays_where_none_is_good():
    example = Example(id="a", user="A message.", replies={"anger": "written anger", "fear": "written fear"})
    sampled = Samples(id="a", replies={"anger": (sample(ANGRY), sample("Lovely."), sample(ANGRIER)), "fear": ()})
    asked = []

    def score(number, example, emotion, replies):
        asked.append((number, example.id, emotion, list(replies)))
        return [1.5, 1.25]

    chosen = choose(7, example, sampled, LEXICON, score)
    assert chosen.replies == {"anger": ANGRIER, "fear": "written fear"}
    assert chosen.own == ("anger",)
    assert asked == [(7, "a", "anger", [sample(ANGRY).tokens, sample(ANGRIER).tokens])]


def test_something_of_the_message_can_be_asked_for_in_the_first_words():
    early, late = sample("A message! I am so furious about it."), sample(ANGRY)
    message = "Your message came."
    signs = sample("So... well, a message! I am so furious about it.")
    assert worth_learning([early, signs, late], message, "anger", LEXICON, within=2) == [early]
    assert worth_learning([early, signs, late], message, "anger", LEXICON, within=4) == [early, signs]
    assert worth_learning([early, late], message, "anger", LEXICON, within=6) == [early, late]


def test_no_more_replies_than_asked_for_begin_alike_also_where_a_run_goes_on(given, circuit, tmp_path):
    # Even messages are given one that begins with "I am furious", odd ones one with "Such messages are".
    alike = Sifting(alike=CHUNK // 2)
    assert run(given, circuit, tmp_path, Fake(), sifting=alike)["anger"] == CHUNK
    whole = [example.replies["anger"] for example in load_examples(tmp_path / "own.jsonl")]
    assert whole.count(ANGRY) == whole.count(ANGRIER) == CHUNK // 2
    chosen = tmp_path / "own.jsonl.work" / "chosen.jsonl"
    chosen.write_text("".join(chosen.read_text().splitlines(keepends=True)[:5]))
    run(given, circuit, tmp_path, Fake(), sifting=alike)
    assert [example.replies["anger"] for example in load_examples(tmp_path / "own.jsonl")] == whole


def test_a_run_writes_examples_that_refine_reads(given, circuit, tmp_path):
    fake = Fake()
    assert run(given, circuit, tmp_path, fake) == {**dict.fromkeys(SIX, 0), "anger": 2 * CHUNK + 3}
    found = load_examples(tmp_path / "own.jsonl")
    assert [example.id for example in found] == [example.id for example in load_examples(given)]
    for number, example in enumerate(found):
        assert example.replies["anger"] == (ANGRIER if number % 2 else ANGRY)
        assert all(example.replies[name] == f"written {name}" for name in SIX if name != "anger")


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(given, circuit, tmp_path):
    run(given, circuit, tmp_path, Fake(), work=tmp_path / "whole")
    whole = (tmp_path / "own.jsonl").read_bytes()
    (tmp_path / "own.jsonl").unlink()
    first = Fake(stop_after=CHUNK)
    with pytest.raises(KeyboardInterrupt):
        run(given, circuit, tmp_path, first)
    assert first.asked == list(range(CHUNK))
    samples = tmp_path / "own.jsonl.work" / "samples.jsonl"
    samples.write_bytes(samples.read_bytes()[:-5])  # and its last line was cut
    second = Fake()
    run(given, circuit, tmp_path, second)
    assert second.asked == list(range(CHUNK - 1, 2 * CHUNK + 3))
    assert (tmp_path / "own.jsonl").read_bytes() == whole
    third = Fake()
    run(given, circuit, tmp_path, third)
    assert third.asked == []


def test_what_other_settings_gave_is_not_taken_up(given, circuit, tmp_path):
    run(given, circuit, tmp_path, Fake())
    with pytest.raises(StoredError, match="other settings: temperature;"):
        run(given, circuit, tmp_path, Fake(), sampling=Sampling(temperature=0.9))
    fake = Fake()
    run(given, circuit, tmp_path, fake, sampling=Sampling(temperature=0.9), fresh=True)
    assert len(fake.asked) == 2 * CHUNK + 3
    (tmp_path / "own.jsonl.work" / "samples.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(StoredError, match=r"samples\.jsonl, line 1: damaged"):
        run(given, circuit, tmp_path, Fake(), sampling=Sampling(temperature=0.9))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--samples", "0"], "--samples must be above 0, got 0"),
        (["--temperature", "-1"], "--temperature must be above 0, got -1"),
        (["--replies", "nowhere.jsonl"], "No such file"),
        (["--prompt-style", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_told(options, told, circuit, tmp_path, capsys):
    words = ["own-replies", "--circuit", str(circuit), "--out", str(tmp_path / "own.jsonl"), *options]
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_emotions_that_no_reply_can_be_judged_by_are_refused_before_sampling(tmp_path, style):
    circuit = random_circuit(tiny_model(tmp_path / "model"), tmp_path / "circuit", names=("calm", "anger"))
    lines = [Example(id="a", user="A message.", replies={"calm": "It is well.", "anger": ANGRY}).model_dump_json()]
    (tmp_path / "given.jsonl").write_text("\n".join(lines) + "\n")
    two = {"calm": style.emotions["calm"], "anger": style.emotions["pride"]}
    (tmp_path / "style.json").write_text(style.model_copy(update={"emotions": two}).model_dump_json())
    more = {"prompt_style": str(tmp_path / "style.json")}
    fake = Fake()
    with pytest.raises(OwnRepliesError, match=r"no words for calm.* with --lexicon"):
        run(tmp_path / "given.jsonl", circuit, tmp_path, fake, **more)
    assert fake.asked == []
    words = load_lexicon()
    calm = words.model_copy(update={"emotions": {**words.emotions, "calm": {1.0: ("calm",)}}})
    (tmp_path / "words.json").write_text(calm.model_dump_json())
    counts = run(tmp_path / "given.jsonl", circuit, tmp_path, fake, lexicon=tmp_path / "words.json", **more)
    assert counts == {"calm": 0, "anger": 1}


def test_strengths_are_numbers(capsys):
    assert main(["own-replies", "--circuit", "c", "--out", "o", "--strengths", "1,much"]) == 2
    assert "expected numbers with commas" in capsys.readouterr().err
