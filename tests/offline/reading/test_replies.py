from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emovllm.circuit import Circuit
from emovllm.emotion import Emotion
from emovllm.errors import CheckpointError, EmotionError
from emovllm_offline.model.control import Control
from emovllm_offline.model.hooks import after, before, hooked
from emovllm_offline.reading.prompts import reads_of
from emovllm_offline.reading.reader import Reader
from emovllm_offline.reading.replies import PLAIN, Ask, Readings, Steering, Way, deal, read_replies, steered_ways
from emovllm_offline.reading.settings import Persisting

LENGTH = 14
WAYS = [Way("prompt_last", "prompt_last"), Way("generation", "generation"), Way("off after 5", "generation", 5)]
USERS = ["the dog walks home late", "a cat", "then good dog runs", "bad cat then late early home a a"]
ASKS = [
    *(Ask(PLAIN, place) for place in range(4)),
    *(Ask(way, place, ("calm", "pride", "boredom")[place % 3]) for way in WAYS for place in range(4)),
]


@pytest.fixture
def prompts(reader: Reader) -> list[tuple[int, ...]]:
    return [read.ids for read in reads_of(reader.loaded.tokenizer, USERS, "last", chat=True)]


def read(reader: Reader, prompts: Any, circuit: Circuit, path: Path, asks: Any = ASKS, **settings: Any) -> Readings:
    chosen = Persisting(**{"max_tokens": LENGTH, "tokens": (1,), "batch": 3, **settings})
    steering = Steering(reader.loaded.network, circuit, chosen.strength)
    return read_replies(reader, prompts, asks, steering, chosen, (path / "read.safetensors", {}), shown=False)


@torch.inference_mode()
def alone(reader: Reader, circuit: Circuit, prompt: list[int], ask: Ask) -> np.ndarray:
    """One reply, every token from all before it, with the circuit's vectors added where the way says: [tokens,
    labels]. Where it would end it goes on without special tokens."""
    tokens: list[int] = []
    banned: list[int] = []
    last = len(prompt) - 1
    ends = {None: last, "prompt_last": last + 1, "generation": last + LENGTH}
    end = last + ask.way.off_after if ask.way.off_after else ends[ask.way.scope]
    layers = reader.decoder.layers

    def add(delta: np.ndarray) -> Any:
        def change(values: Tensor) -> Tensor:
            changed = values.clone()
            changed[:, last:end] += torch.from_numpy(delta)
            return changed

        return change

    hooks = []
    if ask.emotion is not None:
        emotion = circuit.names.index(ask.emotion)
        for kind, layer in circuit.sites():
            module = layers[layer].o_proj if kind == "attn" else layers[layer].down_proj
            assert module is not None
            hooks.append(before(module, add(circuit.site_delta(kind, layer)[emotion])))
    states: list[Tensor] = []
    probe = reader.probe.at()
    with hooked([*hooks, after(layers[probe.layer].block, lambda hidden: states.append(hidden[0, -1]))]):
        while len(tokens) < LENGTH:
            scores = reader.loaded.network(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            if int(scores.argmax()) == reader.loaded.tokenizer.eos_token_id:
                banned = list(reader.loaded.tokenizer.all_special_ids)
            scores[banned] = -torch.inf
            tokens.append(int(scores.argmax()))
    return probe.logits(torch.stack(states).numpy())


def test_each_reply_is_read_as_it_would_be_alone(
    reader: Reader, circuit: Circuit, prompts: Any, tmp_path: Path
) -> None:
    found = read(reader, prompts, circuit, tmp_path)
    assert found.logits.shape == (len(ASKS), LENGTH, 3)
    for place, ask in enumerate(ASKS):
        np.testing.assert_allclose(
            found.logits[place], alone(reader, circuit, list(prompts[ask.message]), ask), atol=1e-4
        )
    plain, last, whole, off = found.logits.reshape(4, 4, LENGTH, 3)
    # The state that writes the first token is the prompt's last, which has the emotion in all three.
    assert np.abs(last[:, 0] - plain[:, 0]).min() > 1e-3
    np.testing.assert_allclose(whole[:, :5], off[:, :5], atol=1e-5)
    assert np.abs(whole[:, 5] - off[:, 5]).max() > 1e-3


def test_an_emotion_that_is_off_after_one_token_is_that_of_the_prompts_last(
    reader: Reader, circuit: Circuit, prompts: Any, tmp_path: Path
) -> None:
    asks = [Ask(way, 0, "calm") for way in (WAYS[0], Way("off after 1", "generation", 1))]
    found = read(reader, prompts, circuit, tmp_path, asks)
    np.testing.assert_allclose(found.logits[0], found.logits[1], atol=1e-5)


def test_sequences_of_several_scopes_are_refused(reader: Reader, circuit: Circuit) -> None:
    emotions = [Emotion((("calm", 1.0),), scope) for scope in ("generation", "prompt_last")]
    with (
        pytest.raises(ValueError, match="several scopes"),
        Control(reader.loaded.network, circuit).emotion(emotions, 4),
    ):
        pass


def test_an_interrupted_run_ends_with_the_same_readings(
    reader: Reader, circuit: Circuit, prompts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(reader, prompts, circuit, tmp_path / "whole", temperature=1.0)
    monkeypatch.setattr("emovllm_offline.storage.checkpoint.time.monotonic", iter(range(0, 10**6, 100)).__next__)
    generate, left = reader.loaded.network.generate, 3

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return generate(*args, **kwargs)

    monkeypatch.setattr(reader.loaded.network, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        read(reader, prompts, circuit, tmp_path, temperature=1.0)
    made = []
    monkeypatch.setattr(
        reader.loaded.network, "generate", lambda *args, **kwargs: made.append(1) or generate(*args, **kwargs)
    )
    again = read(reader, prompts, circuit, tmp_path, temperature=1.0)
    # Two batches of each way, and three were done.
    assert len(made) == 4 * 2 - 3
    np.testing.assert_array_equal(again.logits, whole.logits)
    with pytest.raises(CheckpointError, match="temperature"):
        read(reader, prompts, circuit, tmp_path, temperature=0.5)


def test_a_message_is_sampled_alike_in_every_way(
    reader: Reader, circuit: Circuit, prompts: Any, tmp_path: Path
) -> None:
    """With too little strength to matter, what is left of a difference would be the noise."""
    found = read(reader, prompts, circuit, tmp_path, temperature=1.0, strength=1e-6)
    plain, *others = found.logits.reshape(4, 4, LENGTH, 3)
    for other in others:
        np.testing.assert_allclose(other, plain, atol=1e-3)
    assert np.abs(plain - read(reader, prompts, circuit, tmp_path / "greedy").logits[:4]).max() > 1e-2


def test_a_strength_over_the_maximum_is_refused(reader: Reader, circuit: Circuit) -> None:
    with pytest.raises(EmotionError, match="maximum"):
        Steering(reader.loaded.network, circuit, 9.0).emotion(WAYS[0], "calm")


def test_messages_of_each_label_are_dealt_all_emotions_in_turn() -> None:
    labels = ["calm"] * 6 + ["pride"] * 3 + ["calm"] * 3
    dealt = deal(labels, ("a", "b", "c"))
    pairs = Counter(zip(labels, dealt, strict=True))
    assert pairs == {("calm", name): 3 for name in "abc"} | {("pride", name): 1 for name in "abc"}


def test_ways_are_those_that_were_asked_for() -> None:
    assert [way.name for way in steered_ways(Persisting(off_after=(9, 3)))] == [
        "prompt_last",
        "generation",
        "off after 3",
        "off after 9",
    ]
    # A reply that is over before the emotion is off is one with the emotion.
    assert steered_ways(Persisting(conditions=("off-after",), off_after=(9,), max_tokens=9)) == []
    assert [way.begin for way in (*WAYS, PLAIN)] == [1, 1, 5, 1]
