"""A server of a tiny random model with a strong circuit, for loads that a laptop's processor can bear.

Its weights are float32 and its tokens characters, so that each text is exactly one sequence of tokens and does not
depend on the batch that it was in.
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.circuits import random_circuit
from support.models import tiny_chat_model

ARGUMENTS = (
    *("--dtype", "float32", "--enforce-eager", "--served-model-name", "tiny"),
    # 100 MiB of cache, all of which is soon in use: what grows after that is no cache.
    *("--block-size", "32", "--num-gpu-blocks-override", "4096"),
)


def command(folder: Path, seed: int = 0, length: int = 256) -> list[str]:
    """Makes model and circuit in `folder`, and the command that serves them. length: tokens of prompt and reply."""
    model = tiny_chat_model(folder / "model", seed, max_position_embeddings=length)
    circuit = random_circuit(model, folder / "circuit", scale=1.0, seed=seed, probe=True)
    emovllm = str(Path(sys.executable).with_name("emovllm"))
    serve = [emovllm, "serve", model, "--circuit", str(circuit), "--readout"]
    return [*serve, "--max-model-len", str(length), *ARGUMENTS]
