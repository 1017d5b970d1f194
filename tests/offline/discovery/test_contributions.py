"""What discovery says that a unit adds is what the residual loses when the unit is switched off, in every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from emovllm.architectures import candidates
from emovllm.errors import UnsupportedModelError
from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery import directions
from emovllm_offline.discovery.measure import measure_activations, measure_normed_heads, unit_contributions
from emovllm_offline.discovery.routed import expert_contributions
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.hooks import Hook, after, before, given, hooked
from emovllm_offline.storage.checkpoint import Checkpoint
from offline.conftest import DISCOVERED, ROUTED, tiny_model
from support.families import FAMILIES, UNKNOWN

EMOTIONS = 3
NORMED = [family for family in DISCOVERED if candidates(family)[0].mlp_norm and family in FAMILIES]


class Words:
    """Groups whose prompts differ, between emotions and between groups, in the middle."""

    def __init__(self, number: int, counted: int = 1) -> None:
        self.emotions = list(range(EMOTIONS))
        self.number = number
        self.counted = counted

    def prompts(self, tokenizer: object) -> list[Prompt]:
        own = np.random.default_rng(self.number).integers(3, 128, 6).tolist()
        return [Prompt((4, 5, 10 + e, 20 + e, *own, 7, 8), range(12 - self.counted, 12)) for e in range(EMOTIONS)]


def random_decoder(family: str, experts: bool = False) -> Decoder:
    """Gains and biases are far from those that models are made with: each channel counts otherwise."""
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.5
    return find_decoder(model, experts)


@torch.no_grad()
def ablated(decoder: Decoder, groups: list[Words], attn: np.ndarray, mlp: np.ndarray) -> list[np.ndarray]:
    """Neurons [E, L, m] and heads [E, L, H]: each unit's inputs zeroed in turn, and the sublayer's end run again."""
    prompts = [prompt for group in groups for prompt in group.prompts(None)]  # an emotion's are EMOTIONS apart
    (counted,) = {prompt.positions for prompt in prompts}
    given: dict[torch.nn.Module, torch.Tensor] = {}
    projections = [module for layer in decoder.layers for module in (layer.o_proj, layer.down_proj) if module]

    def keep(module: torch.nn.Module) -> Hook:
        return before(module, lambda values: given.__setitem__(module, values[:, counted.start : counted.stop]))

    with hooked([keep(module) for module in projections]):
        decoder.forward(torch.tensor([prompt.ids for prompt in prompts]))

    def drops(
        projection: torch.nn.Module | None,
        norm: torch.nn.Module | None,
        count: int,
        scale: float,
        toward: np.ndarray,
    ) -> torch.Tensor:
        if projection is None:
            return torch.zeros(EMOTIONS, 0)
        z = given[projection]  # [prompts, positions, width]
        off = torch.eye(count).repeat_interleave(z.shape[-1] // count, 1).bool()  # [units, width]
        y = projection(torch.cat([z[None], z[None].masked_fill(off[:, None, None], 0)]))
        written = y if norm is None else norm(y)
        groupwise = written.double().mean(2).unflatten(1, (-1, EMOTIONS))  # [1 + units, groups, E, hidden]
        along = torch.einsum("ugeh,eh->eu", groupwise, torch.tensor(toward)) / len(groups)
        return (along[:, :1] - along[:, 1:]) * scale

    by_layer = [
        (
            drops(layer.down_proj, layer.mlp_norm and layer.mlp_writer, layer.neurons, layer.mlp_scale, mlp[:, i]),
            drops(
                layer.o_proj,
                layer.attention_norm and layer.attention_writer,
                layer.heads,
                layer.attention_scale,
                attn[:, i],
            ),
        )
        for i, layer in enumerate(decoder.layers)
    ]
    widths = (decoder.intermediate_size, decoder.num_heads)
    return [
        torch.stack(
            [functional.pad(units, (0, width - units.shape[1])) for units in of_layers],
            1,
        ).numpy()
        for of_layers, width in zip(zip(*by_layer, strict=True), widths, strict=True)
    ]


def without(head: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[..., head * width : (head + 1) * width] = 0
        return values

    return change


def both_ways(decoder: Decoder, groups: list[Words]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What discovery says, and the real ablation: of neurons and of heads."""
    means = measure_activations(decoder, None, groups, 32)
    attn, mlp = (directions.emotion_directions(means.difference(state)) for state in ("attn", "mlp"))
    return list(zip(unit_contributions(decoder, means, attn, mlp), ablated(decoder, groups, attn, mlp), strict=True))


@pytest.mark.parametrize("family", [*DISCOVERED, *UNKNOWN])
def test_contributions_rank_units_as_switching_each_off_does(family):
    decoder = random_decoder(family)
    normed = decoder.layers[0].mlp_norm is not None
    both = both_ways(decoder, [Words(number, counted=3) for number in range(24)])
    for (measured, real), count in zip(both, ("neurons", "heads"), strict=True):
        counts = [getattr(layer, count) for layer in decoder.layers]
        there = np.arange(measured.shape[2]) < np.array(counts)[:, None]
        assert not measured[:, ~there].any()
        if not there.any():
            continue
        measured, real = measured[:, there], real[:, there]
        assert spearmanr(measured.ravel(), real.ravel()).statistic > (0.99 if normed else 0.9999)
        # Where nothing norms what a unit writes, its contribution is exact.
        assert np.abs(measured - real).max() < (0.1 if normed else 1e-4) * np.abs(real).max()


@pytest.mark.parametrize("family", NORMED)
def test_of_one_sample_the_contribution_through_a_norm_is_exact(family):
    for measured, real in both_ways(random_decoder(family), [Words(0)]):
        np.testing.assert_allclose(measured, real, atol=1e-5 * np.abs(real).max())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_normed_head_metric_is_the_ablation_seen_after_the_norm_that_follows(family):
    decoder, group = random_decoder(family), Words(0)
    toward = directions.normalise(np.random.default_rng(0).normal(size=(EMOTIONS, 4, decoder.hidden_size)))
    measured = measure_normed_heads(decoder, None, [group], toward, 32)
    ids = torch.tensor([prompt.ids for prompt in group.prompts(None)])
    for i, layer in enumerate(decoder.layers):
        seen: list[np.ndarray] = []

        def project(state, seen=seen, toward=toward[:, i]):
            seen.append((state[:, -1].double().numpy() * toward).sum(1))

        with torch.no_grad(), hooked([after(layer.after_attention, project)]):
            decoder.forward(ids)
            for head in range(decoder.num_heads):
                with hooked([before(layer.o_proj, without(head, decoder.head_dim))]):
                    decoder.forward(ids)
        real = seen[0][:, None] - np.stack(seen[1:], 1)
        np.testing.assert_allclose(measured[:, i], real, atol=1e-4 * np.abs(real).max())


@pytest.mark.parametrize("family", ["olmo2", "gpt_neox"])
def test_the_normed_head_metric_is_refused_where_no_norm_of_the_residual_follows(family):
    decoder = random_decoder(family)
    with pytest.raises(UnsupportedModelError, match="lacks; give --head-metric residual"):
        measure_normed_heads(decoder, None, [Words(0)], np.ones((EMOTIONS, 4, 32)), 32)


def test_measuring_goes_on_with_the_directions_so_far(tmp_path):
    decoder, groups = random_decoder("gemma2"), [Words(number) for number in range(5)]
    whole = measure_activations(decoder, None, groups, 32)

    class Broken(Words):
        def prompts(self, tokenizer):
            raise InterruptedError

    def checkpoint() -> Checkpoint:
        return Checkpoint(tmp_path / "activations.safetensors", {}, seconds=0)

    with pytest.raises(InterruptedError):
        measure_activations(decoder, None, [*groups[:3], Broken(3), Broken(4)], 32, checkpoint())
    resumed = measure_activations(decoder, None, groups, 32, checkpoint())
    assert whole.state().keys() == resumed.state().keys() > {"sums.heads", "sums.neurons stretch along"}
    for name, array in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array, err_msg=name)


@pytest.mark.parametrize("family", ROUTED)
@torch.no_grad()
def test_contributions_of_routed_neurons_are_what_the_residual_loses_without_each(family):
    decoder = random_decoder(family, experts=True)
    groups = [Words(number, counted=3) for number in range(6)]
    means = measure_activations(decoder, None, groups, 32)
    mlp = directions.emotion_directions(means.difference("mlp"))
    measured = expert_contributions(decoder, means, mlp)
    prompts = torch.tensor([prompt.ids for group in groups for prompt in group.prompts(None)])
    i = len(decoder.layers) - 1
    experts = decoder.layers[i].experts
    inputs = []
    with hooked([given(experts.block, inputs.append)]):
        decoder.forward(prompts)

    def along() -> torch.Tensor:
        output = experts.block(*inputs[0])
        written = (output[0] if isinstance(output, tuple) else output).reshape(*prompts.shape, -1)[:, -3:].double()
        groupwise = written.mean(1).unflatten(0, (-1, EMOTIONS)).mean(0)  # [E, hidden]
        return (groupwise * torch.tensor(mlp[:, i])).sum(1) * decoder.layers[i].mlp_scale

    whole = along()
    # The strongest, and some of which many are never chosen.
    tried = [*np.argsort(-np.abs(measured[0, i]))[:4].tolist(), *range(0, measured.shape[2], 37)]
    for unit in tried:
        expert, neuron = divmod(unit, experts.neurons)
        column = experts.columns(expert)[:, neuron]
        kept = column.clone()
        column.zero_()
        drop = (whole - along()).numpy()
        column.copy_(kept)
        np.testing.assert_allclose(measured[:, i, unit], drop, atol=2e-6 * whole.abs().max().item() + 1e-7, rtol=1e-3)
    assert np.abs(measured[:, i, tried]).max() > 0.001


def test_only_layers_of_experts_have_neurons_of_experts():
    decoder = random_decoder("glm4_moe", experts=True)
    means = measure_activations(decoder, None, [Words(0)], 32)
    measured = expert_contributions(decoder, means, directions.emotion_directions(means.difference("mlp")))
    assert measured.shape == (EMOTIONS, 4, 4 * 64)
    assert not measured[:, 0].any()
    assert measured[:, 1:].any(2).all()
