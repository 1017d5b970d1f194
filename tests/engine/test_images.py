"""Requests with an image and an emotion, and what is read of them, equal Hugging Face with hooks: a prompt is as long
as its image makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from emovllm.circuit_files import load_circuit
from emovllm.fields import resolve
from emovllm.probe import load_probe
from emovllm_offline.model.control import Control
from emovllm_offline.model.hooks import after, hooked
from support.circuits import random_circuit
from support.engine import Ask, Reply, assert_same
from support.images import TOKEN, TOKENS, image, tiny_llava
from support.pictures import PICTURES
from support.series import Series

pytestmark = pytest.mark.engine

MAX_TOKENS = 12
READ = {"emotion_readout": "tokens"}


class Oracle:
    """Hugging Face with hooks, on prompts with an image."""

    def __init__(self, model: str, circuit: Path) -> None:
        network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self._control = Control(network, load_circuit(circuit))
        self._probe = load_probe(circuit).at()
        self._images = AutoProcessor.from_pretrained(model).image_processor

    @torch.inference_mode()
    def reply(self, ask: Ask) -> Reply:
        prompt = [token for one in ask.prompt for token in ([TOKEN] * TOKENS if one == TOKEN else [one])]
        pixels = {}
        if ask.image is not None:
            pixels = {"pixel_values": self._images(image(ask.image), return_tensors="pt")["pixel_values"]}
        emotion = resolve(ask.fields, self._control.circuit.spec)
        reply = Reply(*self._control.generate(prompt, emotion, MAX_TOKENS, **pixels))
        if "emotion_readout" in ask.fields:
            states: list[torch.Tensor] = []
            ids = torch.tensor([prompt + reply.tokens[:-1]])
            layer = self._control.layer(self._probe.layer)
            with self._control.emotion(emotion, len(prompt)), hooked([after(layer, states.append)]):
                self._control.model(input_ids=ids, **pixels)
            reply.read = self._probe.logits(states[0][0, len(prompt) - 1 :].numpy()).tolist()
        return reply


def test_requests_with_an_image_and_an_emotion_equal_hugging_face(series: Series, tmp_path: Path) -> None:
    model = tiny_llava(tmp_path / "model")
    circuit = random_circuit(model, tmp_path / "circuit", scale=1.0, probe=True)
    prompt = [3 + (7 * i) % 100 for i in range(40)]
    looking = [*prompt, TOKEN, *prompt[:3]]
    asks = [
        Ask(looking, {"emotion": "anger"}, image=1),
        Ask(looking, {"emotion": "anger", **READ}, image=2),
        Ask(looking, READ, image=1),
        # Of one position alone: the last of the prompt that the image has made longer.
        Ask(looking, {"emotion": "fear", "emotion_scope": "prompt_last", "emotion_strength": 2.0}, image=1),
        Ask(looking, {"emotion": "fear", "emotion_scope": "all", **READ}, image=2),
        Ask(prompt, {"emotion": "anger"}),
    ]
    oracle = Oracle(model, circuit)
    expected = [oracle.reply(ask) for ask in asks]
    assert len({tuple(reply.logprobs) for reply in expected}) == len(asks)
    engine = series.start(model, circuit, {PICTURES: "1"}, skip_tokenizer_init=False)
    assert_same(engine.generate(asks, MAX_TOKENS), expected)
    # Alone, and with what the cache then holds of the same prompt and image in other emotions.
    assert_same([reply for ask in asks for reply in engine.generate([ask], MAX_TOKENS)], expected)
