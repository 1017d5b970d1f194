from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from emovllm_offline.model.continued import _next_turn, continued

PROMPTS = [[1, 5, 9, 11], [1, 5, 12, 8, 13, 14, 30], [1, 40]]


@torch.inference_mode()
def greedy(model, prompt: list[int], length: int) -> list[int]:
    """One prompt, every token from all before it, no end."""
    tokens: list[int] = []
    while len(tokens) < length:
        tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_batch_says_what_its_members_would_say_alone(family, tiny, tokenizer):
    model = tiny(family)
    made = continued(model, tokenizer, PROMPTS, 12)
    assert made.tokens.tolist() == [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert made.ends.tolist() == [12, 12, 12]


def test_a_reply_goes_on_where_the_model_would_have_ended_it(tiny, tokenizer):
    model = tiny("llama")
    alone = greedy(model, PROMPTS[1], 12)
    stop = alone[3]
    assert stop not in alone[:3]
    theirs = model.generation_config = GenerationConfig(do_sample=True, eos_token_id=[2, stop])
    made = continued(model, tokenizer, PROMPTS, 12)
    assert made.ends[1] == 3
    assert made.tokens[1, :3].tolist() == alone[:3]
    assert made.tokens.shape == (3, 12)
    assert not np.isin(made.tokens, [2, stop]).any()
    assert model.generation_config is theirs


def test_no_special_token_follows_the_end(tiny, tokenizer):
    """Else a model that may not end its turn begins another's."""
    model = tiny("llama")
    alone = greedy(model, PROMPTS[1], 12)
    model.generation_config = GenerationConfig(eos_token_id=alone[3])
    second = int(continued(model, tokenizer, PROMPTS[1:2], 4).tokens[0, 3])
    word = tokenizer.convert_ids_to_tokens(second)
    special = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    special.chat_template = tokenizer.chat_template
    assert second not in special.all_special_ids
    special.add_special_tokens({"additional_special_tokens": [word or f"w{second}"]})
    banned = special.all_special_ids
    made = continued(model, special, PROMPTS[1:2], 12)
    assert made.tokens[0, :3].tolist() == alone[:3]
    assert not np.isin(made.tokens[0, 3:], banned).any()


def test_samples_do_not_depend_on_their_batch(tiny, tokenizer):
    model = tiny("llama")
    made = continued(model, tokenizer, PROMPTS, 12, 1.0, [3, 4, 5])
    for place, prompt in enumerate(PROMPTS):
        alone = continued(model, tokenizer, [prompt], 12, 1.0, [3 + place])
        assert alone.tokens[0].tolist() == made.tokens[place].tolist()
    assert continued(model, tokenizer, PROMPTS, 12, 1.0, [6, 7, 8]).tokens.tolist() != made.tokens.tolist()


def test_samples_have_the_models_distribution_without_its_end(tiny, tokenizer):
    model = tiny("llama")
    with torch.inference_mode():
        expected = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 2, -1).numpy()
    stop = int(expected.argsort()[-2])
    model.generation_config = GenerationConfig(eos_token_id=stop)
    count = 4000
    made = continued(model, tokenizer, [PROMPTS[0]] * count, 1, 2.0, range(count))
    ended = made.ends == 0
    told = np.bincount(made.tokens[:, 0], minlength=len(expected)) / count
    # Five standard deviations of the likeliest.
    bound = 5 * np.sqrt(0.25 / count)
    assert ended.mean() == pytest.approx(expected[stop], abs=bound)
    # Nor does a special token follow the end.
    banned = [stop, *tokenizer.all_special_ids]
    rest = expected.copy()
    rest[stop] = 0
    after = expected.copy()
    after[banned] = 0
    mixed = (1 - expected[stop]) * rest / rest.sum() + expected[stop] * after / after.sum()
    assert np.abs(told - mixed).max() < bound
    assert told[stop] == 0


def test_without_a_template_the_users_next_turn_is_the_end():
    class Characters:
        def decode(self, tokens):
            return "".join(map(chr, tokens))

    def end(text: str) -> int:
        return _next_turn(Characters(), [ord(one) for one in text])

    assert end("yes") == 3
    # The last letter makes it the turn: those before it may begin anything else.
    assert end("yes\n\nUser: and\n\nUser: no") == len("yes\n\nUser")
    assert end("\n\nUser:") == len("\n\nUser")
