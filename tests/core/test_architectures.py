"""One row for each family, and what follows from it."""

from __future__ import annotations

import pytest

from emovllm.architectures import FAMILIES, candidates, parse_experts, parse_site
from support.families import FAMILIES as EXAMPLES
from support.families import UNKNOWN


def test_each_row_has_an_example_and_each_example_a_row():
    assert sorted(EXAMPLES) == sorted(family.model_type for family in FAMILIES)
    assert not {family.model_type for family in FAMILIES} & set(UNKNOWN)


def test_a_known_model_has_its_row_and_another_all():
    assert [family.model_type for family in candidates("gpt_neox")] == ["gpt_neox"]
    assert candidates("gemma") == FAMILIES


def test_the_sites_of_every_row_are_found_without_knowing_the_family():
    for family in FAMILIES:
        for kind, path in ((kind, path) for kind, paths in family.projections.items() for path in paths):
            assert parse_site(f"model.layers.7.{path}") == parse_site(f"model.layers.7.{path}", [family]) == (kind, 7)


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.encoder.layers.0.self_attn.out_proj",
        "model.visual.layers.3.mlp.down_proj",
        "model.audio_tower.layers.1.fc2",
        "mtp.layers.0.self_attn.o_proj",
        "vision_encoder.transformer.layers.0.attention.o_proj",
        "vpm.encoder.layers.0.self_attn.out_proj",
    ],
)
def test_towers_and_heads_of_further_tokens_are_no_sites(name):
    assert parse_site(name) is None


def test_the_language_model_of_a_composite_one_has_sites():
    assert parse_site("model.language_model.layers.2.self_attn.o_proj") == ("attn", 2)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp", 3),
        ("model.layers.3.block_sparse_moe", 3),
        ("language_model.model.layers.11.feed_forward", 11),
        ("model.layers.3.mlp.experts", None),
        ("model.layers.3.self_attn", None),
        ("vision_tower.layers.3.mlp", None),
        ("model.norm", None),
    ],
)
def test_blocks_of_experts_are_known_by_their_names(name: str, layer: int | None) -> None:
    assert parse_experts(name) == layer
