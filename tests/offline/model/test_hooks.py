"""Hooks do what they say while their block runs, and are gone after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emovllm_offline.model.hooks import Hook, after, before, hooked


class Two(nn.Module):
    """Two outputs of one input, which may be named."""

    def forward(self, hidden_states, other=0):
        return 2 * hidden_states, other


def hooks_of(module):
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def test_a_hook_sees_and_leaves_what_it_does_not_replace():
    seen, module = [], Two()
    with hooked([before(module, seen.append), after(module, seen.append)]):
        assert module(torch.ones(1), 5) == (torch.full((1,), 2.0), 5)
        assert module(hidden_states=torch.ones(1)) == (torch.full((1,), 2.0), 0)
    assert [float(values) for values in seen] == [1, 2, 1, 2]


def test_the_first_input_and_output_are_replaced_and_the_others_kept():
    module = Two()
    with hooked([before(module, lambda x: x + 1), after(module, lambda x: x * 10)]):
        assert module(torch.ones(1), other=7) == (torch.full((1,), 40.0), 7)
        assert module(hidden_states=torch.ones(1)) == (torch.full((1,), 40.0), 0)
    assert module(torch.ones(1)) == (torch.full((1,), 2.0), 0)


def test_hooks_of_one_module_follow_each_other():
    module = nn.Identity()
    with hooked([after(module, lambda x: x + 1), after(module, lambda x: x * 2)]):
        assert module(torch.ones(1)) == 4


def test_hooks_are_gone_after_an_error():
    module = Two()
    with pytest.raises(TypeError), hooked([before(module, torch.neg), after(module, torch.neg)]):
        module("no tensor")
    assert hooks_of(module) == 0


def test_hooks_are_gone_where_a_later_one_cannot_be_put():
    module = Two()
    with (
        pytest.raises(AttributeError),
        hooked([before(module, torch.neg), Hook(None, print, False)]),  # type: ignore[arg-type]
    ):
        pass
    assert hooks_of(module) == 0
