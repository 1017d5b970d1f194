"""Models of real shapes without weights, and circuits for vLLM's dummy weights: speed does not depend on their values.

`python shapes.py 3b OUT` writes `OUT/llama-3b-shape` and `OUT/circuit`; on the GPU, for dummy weights differ between
devices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import save_circuit
from emovllm.spec import CircuitSpec, EmotionSpec, ModelSpec

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    # Llama-3.2-3B and Llama-3.1-8B; their rope scaling is left out, which costs the same.
    "3b": {
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    # To try the kit without a GPU.
    "tiny": {
        **_LLAMA,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    },
}
EMOTIONS = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
# Of each emotion and layer, as in the circuit of the default model.
NEURONS, HEADS = 14, 6


def write_model(config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def dummy_circuit(config: dict[str, Any], name: str, weight_of: Any) -> Circuit:
    """Random units in every layer; `weight_of(kind, layer)` as in `Circuit.fingerprinted`."""
    layers, heads, width = config["num_hidden_layers"], config["num_attention_heads"], config["head_dim"]
    random = np.random.default_rng(0)

    def units(count: int, available: int, shape: tuple[int, ...]) -> Components:
        count = min(count, available)
        layer = np.repeat(np.arange(layers, dtype=np.int32), count)
        index = np.array([random.choice(available, count, replace=False) for _ in range(layers)]).reshape(-1)
        delta = random.standard_normal((len(layer), *shape)).astype(np.float32)
        return Components(layer, index.astype(np.int32), delta)

    spec = CircuitSpec(
        model=ModelSpec(
            id=name,
            architecture=config["architectures"][0],
            num_hidden_layers=layers,
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_attention_heads=heads,
            head_dim=width,
            vocab_size=config["vocab_size"],
        ),
        emotions=tuple(EmotionSpec(name=emotion) for emotion in EMOTIONS),
    )
    neurons = {emotion: units(NEURONS, config["intermediate_size"], ()) for emotion in EMOTIONS}
    of_heads = {emotion: units(HEADS, heads, (width,)) for emotion in EMOTIONS}
    return Circuit.fingerprinted(spec, neurons, of_heads, weight_of)


def dummy_weights(config: dict[str, Any], device: str) -> dict[str, np.ndarray]:
    """What `load_format="dummy"` puts into the projections, which is the same in every layer: float32 [hidden, width].

    vLLM seeds each parameter alike, so the values depend on the parameter's size, type and device alone.
    """
    import torch
    from vllm.model_executor.model_loader.weight_utils import initialize_dummy_weights

    widths = {"attn": config["num_attention_heads"] * config["head_dim"], "mlp": config["intermediate_size"]}
    weights = {}
    for kind, width in widths.items():
        layer = torch.nn.Linear(width, config["hidden_size"], bias=False, dtype=torch.bfloat16, device=device)
        initialize_dummy_weights(layer, None)
        weights[kind] = layer.weight.detach().float().cpu().numpy()
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    config, name = SHAPES[args.shape], f"llama-{args.shape}-shape"
    weights = dummy_weights(config, args.device)
    write_model(config, args.out / name)
    save_circuit(dummy_circuit(config, name, lambda kind, _: weights[kind]), args.out / "circuit")
    print(f"{args.out}: {name}, circuit")


if __name__ == "__main__":
    main()
