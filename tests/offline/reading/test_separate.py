from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emovllm.errors import CheckpointError, DataError
from emovllm_offline.data.styles import Frame
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.reading.pairs import Pairs, cosines, mean_cosine
from emovllm_offline.reading.separate import WAYS, Piece, Separated, Way, reads_of, separate
from emovllm_offline.reading.separate_report import write_report
from emovllm_offline.reading.states import states_of

NEUTRAL = Frame(system="reply .")
REPLIES = {"calm": ["it is well .", "so quiet you are ."], "pride": ["yes ! very proud", "good ! so good !"]}


@pytest.fixture
def pieces() -> list[Piece]:
    return [
        Piece(f"{reply} {animal}", emotion, animal, Frame(system=f"always reply in {emotion} ."), f"my {animal} runs .")
        for animal in ("dog", "cat", "bone")
        for emotion, replies in REPLIES.items()
        for reply in replies
    ]


def test_each_way_reads_the_same_words_of_the_reply(tokenizer: Any, pieces: list[Piece]) -> None:
    reads = reads_of(tokenizer, pieces, NEUTRAL, 128)
    assert reads.pieces == tuple(pieces)
    prompts = {}
    for way in WAYS:
        read = reads.ways[way][1]
        assert tokenizer.decode([read.ids[place] for place in read.positions]).split() == pieces[1].reply.split()
        prompts[way] = tokenizer.decode(read.ids[: read.positions[0]])
    assert "always reply in calm" in prompts["generation"]
    assert "my dog runs" in prompts["generation"]
    assert "always" not in prompts["own turn"]
    assert prompts["own turn"].rstrip().endswith("<assistant>")
    assert prompts["comprehension"].rstrip().endswith("<user>")


def test_what_is_measured_is_what_the_states_of_each_reply_alone_give(
    decoder: Decoder, tokenizer: Any, pieces: list[Piece], tmp_path: Path
) -> None:
    reads = reads_of(tokenizer, pieces, NEUTRAL, 128)
    ways = separate(decoder, reads, tmp_path, {}, tokens=256, shown=False)
    way: Way = "comprehension"
    states = np.concatenate([states_of(decoder, [read]) for read in reads.ways[way]], 1)[2]
    of_pieces, unrelated = states[:12], states[12:]
    assert len(unrelated) == reads.unrelated
    label = np.array([sorted(REPLIES).index(piece.emotion) for piece in pieces])
    centre = unrelated.mean(0)
    found = ways[way][2]
    for apart, shift in ((found.raw, 0), (found.centred, centre)):
        vectors = np.stack([of_pieces[label == one].mean(0) - shift for one in (0, 1)])
        assert apart.vectors == pytest.approx(mean_cosine(vectors), abs=1e-4)
        assert apart.unrelated == pytest.approx(mean_cosine(unrelated - shift), abs=1e-4)
        expected = Pairs(label, [piece.group for piece in pieces]).separation(cosines(of_pieces - shift))
        assert apart.effect.value == pytest.approx(expected.effect.value, rel=1e-2, abs=1e-2)
    assert found.depth == 0.75
    with pytest.raises(CheckpointError, match="other settings: run"):
        separate(decoder, reads, tmp_path, {"run": 2}, tokens=256, shown=False)


def test_the_report_has_every_way_and_layer(
    decoder: Decoder, tokenizer: Any, pieces: list[Piece], tmp_path: Path
) -> None:
    reads = reads_of(tokenizer, pieces, NEUTRAL, 128)
    separated = Separated(
        model="tiny/model",
        emotions={"calm": 6, "pride": 6},
        groups=3,
        unrelated=reads.unrelated,
        ways=separate(decoder, reads, tmp_path / "work", {}, tokens=256, shown=False),
        about={"left out": 2},
    )
    write_report(separated, tmp_path / "out")
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    for way in WAYS:
        best = separated.best(way)
        assert f"| {best.layer} * | {best.depth:.2f} | {best.raw.vectors:.3f} | {best.raw.unrelated:.3f} |" in markdown
    assert "3 scenarios alone" in markdown
    assert "Left out: 2 replies" in markdown
    assert page.count("data:image/png;base64,") == 2
    assert Separated.load(tmp_path / "out") == separated


def test_one_emotion_or_replies_that_are_too_long_are_refused(tokenizer: Any, pieces: list[Piece]) -> None:
    with pytest.raises(DataError, match="two emotions and two scenarios"):
        reads_of(tokenizer, [piece for piece in pieces if piece.emotion == "calm"], NEUTRAL, 128)
    with pytest.raises(DataError, match="at most 3 tokens"):
        reads_of(tokenizer, pieces, NEUTRAL, 3)
