"""Models of real shapes and circuits for them: `python -m benchmarks.gpu.shapes SHAPE OUT` writes both.

Speed does not depend on the weights' values, and those shapes have none: vLLM fills in dummies, which differ between
devices, so that their circuits are made on the GPU. What is verified has random weights that let tokens differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
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
    # Of a model that is verified: weights of its own, of this standard deviation.
    "small": {
        **_LLAMA,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    },
    # For a CPU.
    "tiny": {
        **_LLAMA,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 128,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    },
}
EMOTIONS = 6
# Of each emotion and layer, as in the circuit of the default model.
NEURONS, HEADS = 14, 6


Weights = Callable[[str, int], np.ndarray]  # of a kind of projection, in a layer: [hidden, width]


def write_config(shape: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape], indent=1) + "\n")


def random_circuit(shape: str, weight_of: Weights, emotions: int = EMOTIONS) -> Circuit:
    """Random units of each emotion in every layer."""
    config, names = SHAPES[shape], [f"emotion-{number + 1}" for number in range(emotions)]
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
            id=f"llama-{shape}",
            architecture=config["architectures"][0],
            num_hidden_layers=layers,
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_attention_heads=heads,
            head_dim=width,
            vocab_size=config["vocab_size"],
        ),
        emotions=tuple(EmotionSpec(name=emotion) for emotion in names),
    )
    neurons = {emotion: units(NEURONS, config["intermediate_size"], ()) for emotion in names}
    of_heads = {emotion: units(HEADS, heads, (width,)) for emotion in names}
    return Circuit.fingerprinted(spec, neurons, of_heads, weight_of)


def dummy_weights(shape: str, device: str) -> Weights:
    """What `load_format="dummy"` puts into the projections, the same in every layer: float32.

    vLLM seeds each parameter alike, so that values depend on the parameter's size, type and device alone.
    """
    import torch
    from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

    config = SHAPES[shape]
    widths = {"attn": config["num_attention_heads"] * config["head_dim"], "mlp": config["intermediate_size"]}
    weights = {}
    for kind, width in widths.items():
        weight = torch.empty(config["hidden_size"], width, dtype=torch.bfloat16, device=device)
        initialize_single_dummy_weight(weight)
        weights[kind] = weight.float().cpu().numpy()
    return lambda kind, _: weights[kind]


def random_weights(shape: str, folder: Path) -> Weights:
    """Writes a whole model of random weights, in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).bfloat16()
    model.save_pretrained(folder)

    def weight_of(kind: str, layer: int) -> np.ndarray:
        whole = model.model.layers[layer]
        projection = whole.mlp.down_proj if kind == "mlp" else whole.self_attn.o_proj
        weight: np.ndarray = projection.weight.detach().float().numpy()
        return weight

    return weight_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="a folder: `model`, and `circuit-N` of N emotions")
    parser.add_argument("--weights", action="store_true", help="of its own, not vLLM's dummies")
    parser.add_argument("--device", default="cuda", help="of the dummies (default: %(default)s)")
    parser.add_argument("--emotions", type=int, nargs="+", default=[EMOTIONS], metavar="N")
    args = parser.parse_args()
    if args.weights:
        weights = random_weights(args.shape, args.out / "model")
    else:
        weights = dummy_weights(args.shape, args.device)
        write_config(args.shape, args.out / "model")
    for emotions in args.emotions:
        save_circuit(random_circuit(args.shape, weights, emotions), args.out / f"circuit-{emotions}")


if __name__ == "__main__":
    main()
