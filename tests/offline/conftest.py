"""Tiny random models of several architectures, and a tokenizer made on the spot: nothing is downloaded."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from emovllm.architectures import FAMILIES as ROWS
from emovllm_offline.data.sev import Events, Record
from emovllm_offline.data.styles import Style
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.find import find_decoder
from emovllm_offline.reporting import plots
from support.evaluated import quick as quick
from support.evaluated import stub as stub
from support.families import FAMILIES, VARIANTS, family_network

# What begins a picture.
PNG = b"\x89PNG\r\n\x1a\n"
VOCABULARY = 128
TEMPLATE = (
    "<s>{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = (
    "calm pride boredom reply always in my the a dog cat walks runs home late early and then finds keeps loses bone "
    "letter road . ! well good bad proud quiet dull yes no so very it is this that be you are"
)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "sliding_window": 64,
    "layer_types": None,
    "initializer_range": 0.3,
}
# What discovery refuses, and why.
REFUSED = {
    "opt": "the projections of layer 0 are not run on tokens as the layer is",
}
DISCOVERED = [family for family in (*FAMILIES, *VARIANTS) if family not in REFUSED]
# Those whose routed experts are discovered too, where that is asked for.
ROUTED = [row.model_type for row in ROWS if row.experts and not row.no_experts]
# One of each way in which they differ: plain; normed output, windows, scaled embeddings; the MLP itself reads the
# residual; a scale; parallel; transposed weights, learnt positions; positions off the mask; experts that share one;
# layers of another mixer, with a state and wider heads.
DIFFERENT = ["llama", "gemma2", "olmo2", "granite", "gpt_neox", "gpt2", "falcon_alibi", "glm4_moe", "granitemoehybrid"]


def tiny_model(family: str) -> PreTrainedModel:
    # Larger weights than the usual initialisation, so that the sublayers matter.
    return family_network(family, **SHAPE)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Makes a tiny model of a family: the same weights each time."""
    return tiny_model


@pytest.fixture(params=DISCOVERED)
def any_decoder(request) -> Decoder:
    return find_decoder(tiny_model(request.param))


@pytest.fixture(params=DIFFERENT)
def different_decoder(request) -> Decoder:
    return find_decoder(tiny_model(request.param))


@pytest.fixture
def decoder() -> Decoder:
    return find_decoder(tiny_model("llama"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<system>", "<user>", "<assistant>", *WORDS.split()]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<system>", "<user>", "<assistant>"]})
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def records() -> list[Record]:
    return [
        Record(
            skeleton_id=f"dog_{i}",
            theme="Dogs",
            scenario=f"my {animal} walks home {when} .",
            event=Events(
                positive=f"the {animal} finds a bone .",
                neutral=f"the {animal} keeps a bone .",
                negative=f"the {animal} loses a bone .",
            ),
        )
        for i, (animal, when) in enumerate([("dog", "late"), ("cat", "early")])
    ]


@pytest.fixture(scope="session")
def style() -> Style:
    """Three emotions that no code knows."""
    return Style.model_validate(
        {
            "name": "told",
            "description": "plain",
            "neutral": {"system": "reply ."},
            "emotions": {name: [{"system": f"always reply in {name} ."}] for name in ("calm", "pride", "boredom")},
        }
    )


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws every figure but spares tests of something else its rendering, which takes seconds."""
    monkeypatch.setattr(plots, "png", lambda figure: PNG)


@pytest.fixture
def reply_style() -> Style:
    replies = {
        "calm": ["it is well .", "so quiet you are ."],
        "pride": ["yes ! very proud", "good ! so good !"],
        "boredom": ["dull . so dull .", "no . it is very very dull"],
    }
    return Style.model_validate(
        {
            "name": "forced",
            "description": "teacher-forced",
            "neutral": {"system": "reply ."},
            "per_item": 2,
            "reply_tokens": {"first": 1, "last": 5},
            "emotions": {e: [{"system": "reply .", "reply": r} for r in texts] for e, texts in replies.items()},
        }
    )
