"""Emotional replies of the model itself, for `emovllm refine` to learn from: what it says under a circuit, sifted.

To every message the served model replies a few times in each emotion, sampled. Of those that end by themselves, repeat
no three tokens, name something of the message and, by the lexicon judge, show the emotion, the one is kept that the
plain model finds likeliest when its prompt asks for the emotion (best of n); where none is left, the reply that was
there stays. Without the third condition the likeliest replies fit every message ("I am so stunned, I can hardly believe
it!"), and a circuit that learns from them says little else.

Constant vectors by themselves bring about what is the same for all messages: of replies that begin alike, the
beginning is learnt. Those that begin with something of their message differ as messages do. Hence two more conditions
that can be set: how early something is named, and how many replies may begin in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emovllm.circuit_files import load_circuit
from emovllm.errors import OwnRepliesError
from emovllm.files import write_atomically
from emovllm.models import public_model_id, resolve_model
from emovllm.progress import Bar
from emovllm.spec import EmotionName
from emovllm_offline.data import examples
from emovllm_offline.data.examples import Example
from emovllm_offline.data.styles import load_style
from emovllm_offline.judges.judge import Judge
from emovllm_offline.judges.lexicon import LexiconJudge, load_lexicon, tokens
from emovllm_offline.judges.text import opening, text_metrics
from emovllm_offline.refinement.sampling import Sample, Sampler, Samples, Scorer, engine, plain
from emovllm_offline.refinement.settings import OwnRepliesSettings, Sampling, Sifting
from emovllm_offline.storage.journal import Journal
from emovllm_offline.storage.places import work_folder

SETTINGS, SAMPLES, CHOSEN = "own-replies.json", "samples.jsonl", "chosen.jsonl"
# Shorter ones say too little to be learnt from.
LEAST_WORDS = 5
# Words of so many letters are taken to name something; as many letters from the start tell two of them apart.
NAMING = 5
# Messages whose samples one call of the engine makes: what an interruption may lose.
CHUNK = 16


class Chosen(Example):
    """An example, and the emotions in which its reply is the model's own."""

    own: tuple[EmotionName, ...]


def worth_learning(
    samples: Sequence[Sample], message: str, emotion: str, judge: Judge, within: int | None = None
) -> list[Sample]:
    """Those that show the emotion, speak of the message (in their first `within` words), and do not repeat
    themselves."""
    named = _named(message)
    verdicts = judge.judge([sample.text for sample in samples], [emotion] * len(samples))
    measured = [text_metrics(sample.text, sample.tokens) for sample in samples]
    return [
        sample
        for sample, verdict, metrics in zip(samples, verdicts, measured, strict=True)
        if verdict.label == emotion
        and metrics.words >= LEAST_WORDS
        and metrics.repetition == 0
        and named & _named(sample.text, within)
    ]


def _named(text: str, within: int | None = None) -> set[str]:
    words = [token for token in tokens(text) if token[0].isalpha()]
    return {word[:NAMING] for word in words[:within] if len(word) >= NAMING}


def choose(
    number: int,
    example: Example,
    sampled: Samples,
    judge: Judge,
    score: Scorer,
    sifting: Sifting = Sifting(),
    worn: Callable[[str, str], bool] = lambda emotion, text: False,
) -> Chosen:
    """The example with the model's own replies where there are good ones. worn: whether enough replies in an emotion
    begin as a text does."""
    replies = dict(example.replies)
    own = []
    for emotion, samples in sampled.replies.items():
        good = worth_learning(samples, example.user, emotion, judge, sifting.named_within)
        if good := [sample for sample in good if not worn(emotion, sample.text)]:
            # Of one there is nothing to choose, and scores take a forward of the prompt.
            scores = score(number, example, emotion, [sample.tokens for sample in good]) if good[1:] else [0.0]
            replies[emotion] = min(zip(scores, good, strict=True), key=lambda pair: pair[0])[1].text
            own.append(emotion)
    return Chosen(**{**dict(example), "replies": replies}, own=tuple(own))


class Work:
    """What was sampled and chosen so far, by the message's id, for one set of settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], fresh: bool) -> None:
        """Raises: StoredError where the folder holds what other settings gave."""
        remedy = "give --fresh, or another --work"
        journal = Journal(folder, settings, name=SETTINGS, files=(SAMPLES, CHOSEN), remedy=remedy, fresh=fresh)
        self._samples, self._chosen = journal.lines(SAMPLES, Samples), journal.lines(CHOSEN, Chosen)
        self.samples = {row.id: row for row in self._samples.rows}
        self.chosen = {row.id: row for row in self._chosen.rows}

    def add_samples(self, row: Samples) -> None:
        self._samples.append(row)
        self.samples[row.id] = row

    def add_chosen(self, row: Chosen) -> None:
        self._chosen.append(row)
        self.chosen[row.id] = row

    def openings(self) -> Counter[tuple[str, tuple[str, ...]]]:
        """How many of the chosen replies that are the model's own begin alike, by emotion and beginning."""
        return Counter((name, opening(row.replies[name])) for row in self.chosen.values() for name in row.own)


def run(
    model: str | None,
    circuit: str | Path,
    out: str | Path,
    settings: OwnRepliesSettings = OwnRepliesSettings(),
    sampling: Sampling = Sampling(),
    *,
    progress: bool = True,
    make_sampler: Callable[[], Sampler] | None = None,
    make_scorer: Callable[[], Scorer] | None = None,
) -> dict[str, int]:
    """`emovllm own-replies`: samples, sifts, and writes the examples to `out`.

    make_sampler, make_scorer: give what replies and what scores, by default the served model and the plain one.
    Returns: in how many replies of each emotion the model's own are.
    Raises: StoredError, OwnRepliesError, ExamplesError, CircuitError, DefaultModelError, OSError.
    """
    given = load_circuit(circuit)
    found = examples.load_examples(settings.replies)[: settings.limit]
    examples.require_emotions(found, given.names)
    chosen = load_style(settings.prompt_style)
    if missing := [name for name in given.names if name not in chosen.emotions]:
        raise OwnRepliesError(f"--prompt-style: {chosen.name} has no {', '.join(missing)}; give a style that has")
    judge = _judge(given.names, settings)
    folder = resolve_model(model)
    about = {
        "model": public_model_id(folder),
        "circuit": given.digest(),
        "messages": examples.digest(found),
        "style": chosen.digest(),
        **asdict(sampling),
        **asdict(settings.sifting),
    }
    if settings.lexicon is not None:
        about["lexicon"] = judge.config["lexicon"]
    place = Work(settings.work or work_folder(out), about, settings.fresh)
    _sample(found, place, make_sampler or (lambda: engine(folder, circuit, given.names, sampling)), progress)
    _choose(found, place, judge, settings.sifting, make_scorer or (lambda: plain(folder, chosen)), progress)
    lines = [
        place.chosen[example.id].model_dump_json(exclude={"own"}, exclude_defaults=True) + "\n" for example in found
    ]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out), "".join(lines).encode())
    counts = Counter(name for example in found for name in place.chosen[example.id].own)
    return {name: counts[name] for name in given.names}


def _judge(emotions: Sequence[str], settings: OwnRepliesSettings) -> LexiconJudge:
    """Raises: JudgeError, OwnRepliesError where the word list has no words for an emotion."""
    lexicon = load_lexicon(settings.lexicon)
    if missing := [name for name in emotions if name not in lexicon.emotions]:
        raise OwnRepliesError(
            f"the word list has no words for {', '.join(missing)}, by which replies are judged; "
            "give one that has with --lexicon"
        )
    return LexiconJudge(emotions, lexicon)


def _sample(found: Sequence[Example], place: Work, make: Callable[[], Sampler], progress: bool) -> None:
    todo = [(number, example) for number, example in enumerate(found) if example.id not in place.samples]
    if not todo:
        return
    sampler = make()
    with _bar("samples", len(todo), len(found), progress) as bar:
        for begin in range(0, len(todo), CHUNK):
            for row in sampler(todo[begin : begin + CHUNK]):
                place.add_samples(row)
                bar.advance()


def _choose(
    found: Sequence[Example],
    place: Work,
    judge: Judge,
    sifting: Sifting,
    make: Callable[[], Scorer],
    progress: bool,
) -> None:
    todo = [(number, example) for number, example in enumerate(found) if example.id not in place.chosen]
    if not todo:
        return
    scorer = make()
    begun = place.openings()

    def worn(emotion: str, text: str) -> bool:
        return sifting.alike is not None and begun[emotion, opening(text)] >= sifting.alike

    with _bar("choosing", len(todo), len(found), progress) as bar:
        for number, example in todo:
            row = choose(number, example, place.samples[example.id], judge, scorer, sifting, worn)
            begun.update((name, opening(row.replies[name])) for name in row.own)
            place.add_chosen(row)
            bar.advance()


def _bar(what: str, todo: int, total: int, progress: bool) -> Bar:
    return Bar(what, total, done=total - todo, unit="messages", shown=progress)
