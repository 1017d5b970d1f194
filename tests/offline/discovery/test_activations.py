import numpy as np
import pytest
import torch

from emovllm.errors import ActivationError
from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery.activations import QUANTITIES, GroupMeans, collect


def prompts(*lengths, shared=0, counted=1):
    """Random prompts; `shared` leading tokens are the same in all, the last `counted` positions count."""
    torch.manual_seed(1)
    head = torch.randint(3, 128, (shared,)).tolist()
    return [
        Prompt((*head, *torch.randint(3, 128, (n,)).tolist()), range(shared + n - counted, shared + n)) for n in lengths
    ]


def assert_a_padded_batch_equals_one_by_one(decoder, shared, counted):
    batch = prompts(3, 9, 5, shared=shared, counted=counted)
    together = collect(decoder, batch)
    for i, prompt in enumerate(batch):
        alone = collect(decoder, [prompt])
        for quantity in QUANTITIES:
            # Relative to the size of the state: Gemma 2 scales its embeddings up.
            scale = alone[quantity].abs().max().clamp(min=1)
            assert (together[quantity][i] - alone[quantity][0]).abs().max() < 1e-5 * scale, quantity


def test_padded_batch_equals_one_by_one(any_decoder):
    assert_a_padded_batch_equals_one_by_one(any_decoder, 6, 3)


@pytest.mark.parametrize(("shared", "counted"), [(0, 1), (0, 3), (6, 1)])
def test_padded_batch_equals_one_by_one_whatever_is_shared_and_counted(different_decoder, shared, counted):
    assert_a_padded_batch_equals_one_by_one(different_decoder, shared, counted)


def test_batch_size_does_not_matter(decoder):
    batch = prompts(3, 9, 5, 4, 7, shared=2)
    for one, other in zip(collect(decoder, batch, 2).values(), collect(decoder, batch, 32).values(), strict=True):
        # Another number of threads, or a batch of another shape, sums in another order.
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_residuals_are_those_of_the_model(any_decoder):
    (prompt,) = prompts(7)
    got = collect(any_decoder, [prompt])
    out = any_decoder.model(torch.tensor([list(prompt.ids)]), output_hidden_states=True)
    # hidden_states[i + 1] is the output of layer i, save that of the last layer, which is normed.
    for layer in range(len(any_decoder.layers) - 1):
        state = out.hidden_states[layer + 1][0, -1]
        # Squares (Nemotron's MLP) make the rounding of what they are given as much larger as the values.
        atol = 1e-4 * max(1.0, float(state.abs().max()))
        torch.testing.assert_close(got["mlp"][0, layer], state, rtol=1e-5, atol=atol)
    base = any_decoder.trunk
    final_norm = [child for name, child in base.named_children() if "norm" in name or name == "ln_f"][-1]
    final = final_norm(got["mlp"][0, -1])
    torch.testing.assert_close(final, out.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-4)


def test_mlp_carries_the_residual_after_attention_to_that_after_the_mlp(decoder):
    got = collect(decoder, prompts(7))
    for i, layer in enumerate(decoder.layers):
        written = layer.down_proj(got["neurons"][:, i])
        torch.testing.assert_close(got["attn"][:, i] + written, got["mlp"][:, i], rtol=1e-4, atol=1e-4)


def test_attention_carries_the_residual_from_layer_to_layer(decoder):
    got = collect(decoder, prompts(7))
    for i, layer in enumerate(decoder.layers[1:], 1):
        written = layer.o_proj(got["heads"][:, i])
        torch.testing.assert_close(got["mlp"][:, i - 1] + written, got["attn"][:, i], rtol=1e-4, atol=1e-4)


def test_several_positions_are_averaged(decoder):
    (last_three,) = prompts(8, counted=3)
    each = [Prompt(last_three.ids, range(i, i + 1)) for i in last_three.positions]
    got, alone = collect(decoder, [last_three]), collect(decoder, each)
    for quantity in QUANTITIES:
        torch.testing.assert_close(got[quantity][0], alone[quantity].mean(0), rtol=1e-5, atol=1e-5)


def test_group_means_equal_those_of_all_samples_at_once():
    generator = torch.Generator().manual_seed(0)
    # 5 groups of 3 emotions with 2 prompts each
    samples = torch.randn(5, 6, 4, 7, generator=generator)
    means = GroupMeans(3)
    for group in samples:
        means.add({"x": group}, [0, 0, 1, 1, 2, 2])
    by_emotion = samples.double().numpy().reshape(5, 3, 2, 4, 7).mean(2)
    np.testing.assert_allclose(means.mean("x"), by_emotion.mean(0), atol=1e-12)
    np.testing.assert_allclose(
        means.difference("x"), (by_emotion - by_emotion.mean(1, keepdims=True)).mean(0), atol=1e-12
    )
    np.testing.assert_allclose(means.difference("x").sum(0), 0, atol=1e-12)


def test_group_means_hold_no_samples():
    means = GroupMeans(2)
    group = {"x": torch.ones(2, 4, 7)}
    means.add(group, [0, 1])
    held = sum(a.nbytes for part in (means._sums, means._differences) for a in part.values())
    for _ in range(9):
        means.add(group, [0, 1])
    assert sum(a.nbytes for part in (means._sums, means._differences) for a in part.values()) == held
    assert means.groups == 10


def test_incomplete_group_is_refused():
    with pytest.raises(ValueError, match=r"emotions \[0, 2\]"):
        GroupMeans(3).add({"x": torch.ones(2, 4, 7)}, [0, 2])


def test_model_with_nan_is_refused(decoder):
    with torch.no_grad():
        decoder.layers[2].down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ActivationError, match=r"not finite \(mlp, layer 2\)"):
        collect(decoder, prompts(5))


def test_hooks_are_gone_afterwards(decoder):
    collect(decoder, prompts(5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.model.modules())
