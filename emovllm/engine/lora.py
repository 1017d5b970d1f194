"""LoRA adapters and emotions together.

An adapter changes the projection that an injection goes through: (W + B A) (x + delta) = ... + W delta + B A delta. The
first part is the folded circuit; the second is folded too whenever an adapter takes a slot, into further columns that
only that adapter's requests have weights for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emovllm.engine.arithmetic import full_precision
from emovllm.engine.patching import patches


def adapter_layout(runner: Any) -> tuple[int | None, ...]:
    """The `lora_int_id` in each slot of a runner for which LoRA is enabled."""
    return tuple(runner.lora_manager._adapter_manager.lora_index_to_id)


def follow_adapters(wrapper: Any, delta: Tensor, vectors: Tensor) -> None:
    """Folds the circuits through each adapter that is put into a slot of a layer.

    Args:
        wrapper: vLLM's RowParallelLinearWithLoRA.
        delta: float32 [emotions, input_size_per_partition], read whenever an adapter comes.
        vectors: [emotions * (1 + slots), hidden], written in place.
    """
    wrapper.emotion_fold = delta, vectors
    for patch in (clear_slot, fold_slot):
        patch.install(on=wrapper)


@patches("vllm.lora.layers.base.BaseLayerWithLoRA.reset_lora")
def clear_slot(reset_lora: Callable[..., Any], wrapper: Any, index: int) -> None:
    reset_lora(wrapper, index)
    delta, vectors = wrapper.emotion_fold
    _of_slot(vectors, delta, index).zero_()


@patches("vllm.lora.layers.base.BaseLayerWithLoRA.set_lora")
def fold_slot(set_lora: Callable[..., Any], wrapper: Any, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
    set_lora(wrapper, index, lora_a, lora_b)
    _fold_adapter(wrapper, *wrapper.emotion_fold, index)


def fold_adapters(wrapper: Any, delta: Tensor, vectors: Tensor) -> None:
    """Folds changed circuits through the adapters that are in their slots; an empty slot's matrices are zero."""
    for slot in range(len(wrapper.lora_a_stacked[0])):
        _fold_adapter(wrapper, delta, vectors, slot)


@torch.inference_mode()
@full_precision()
def _fold_adapter(wrapper: Any, delta: Tensor, vectors: Tensor, slot: int) -> None:
    a, b = wrapper.lora_a_stacked[0][slot, 0].float(), wrapper.lora_b_stacked[0][slot, 0].float()
    _of_slot(vectors, delta, slot).copy_(delta @ a.T @ b.T)


def _of_slot(vectors: Tensor, delta: Tensor, slot: int) -> Tensor:
    return vectors[len(delta) * (1 + slot) : len(delta) * (2 + slot)]
