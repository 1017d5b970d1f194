"""The steering baseline on a loaded vLLM model: a forward hook on each decoder layer of the band.

Only where `additional_config["emovllm"]["steering"]` asks for it; otherwise no layer is touched. The residual stream is
whole on every tensor-parallel rank, so that each adds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emovllm.baseline import layer_key, steered_layers, steering_vectors
from emovllm.circuit import Circuit
from emovllm.engine.arithmetic import mixed, rows_of
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.form import Form
from emovllm.engine.layers import decoder_layers, parts
from emovllm.spec import ModelSpec


@dataclass(slots=True)
class SteeredLayer:
    """One decoder layer; `layer.emotion_vectors` is what its hook adds."""

    number: int
    layer: Any

    @property
    def key(self) -> str:
        return layer_key(self.number)


def install(
    model: nn.Module, spec: ModelSpec, coefficients: Coefficients, capacity: int, form: Form
) -> list[SteeredLayer]:
    """Hooks the band's layers that this rank holds. Raises: Unsupported."""
    steered = []
    for number, layer, carried in decoder_layers(model, steered_layers(spec.num_hidden_layers)):
        vectors = torch.zeros(capacity, spec.hidden_size, device=coefficients.buffer.device)
        layer.register_buffer("emotion_vectors", vectors, persistent=False)
        layer.register_buffer("emotion_coefficients", coefficients.buffer, persistent=False)
        layer.register_forward_hook(_hook(capacity, carried, form.fuses(capacity)))
        steered.append(SteeredLayer(number, layer))
    return steered


def fill(layers: list[SteeredLayer], circuit: Circuit, first: int) -> None:
    """Puts a circuit's directions into the vectors from `first` on."""
    for steered in layers:
        vectors = torch.from_numpy(steering_vectors(circuit, steered.number))
        steered.layer.emotion_vectors[first : first + len(vectors)] = vectors


def clear(layers: list[SteeredLayer], columns: slice) -> None:
    """Takes a circuit out of its columns."""
    for steered in layers:
        steered.layer.emotion_vectors[columns] = 0


def _hook(emotions: int, carried: bool, fused: bool) -> Callable[[Any, Any, Any], Any]:
    """carried: as in `DecoderLayer`."""

    def steer(layer: Any, args: Any, output: Any) -> Any:
        # The coefficients' last columns are steering's.
        coefficients = layer.emotion_coefficients[:, -emotions:]
        hidden, residual = parts(layer, output, carried)
        steered = add_steering(hidden, residual, coefficients, layer.emotion_vectors, fused)
        return steered if isinstance(output, Tensor) else (steered, output[1])

    return steer


def add_steering(hidden: Tensor, residual: Tensor | None, coefficients: Tensor, vectors: Tensor, fused: bool) -> Tensor:
    """Adds strength * RMS(h) * vector to a layer's output, h being the residual stream, `hidden` + `residual`.

    Args:
        hidden, residual: [..., tokens, hidden], any floating-point type; residual None where `hidden` is the stream.
        coefficients: float32 [max_tokens, emotions], row i belonging to token i; all zero for a token not steered.
        vectors: float32 [emotions, hidden], `emovllm.baseline.steering_vectors`.
        fused: as in `emovllm.engine.arithmetic.add_emotion`.
    Returns: a tensor like `hidden`; bit-identical to it in the rows that are not steered.
    """
    stream = hidden.float() if residual is None else hidden.float() + residual.float()
    rms = stream.square().mean(-1, keepdim=True).sqrt()
    return (hidden.float() + rms * mixed(rows_of(coefficients, hidden), vectors, fused)).to(hidden.dtype)
