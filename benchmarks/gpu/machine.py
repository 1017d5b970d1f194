"""The card and what is installed: `python -m benchmarks.gpu.machine` prints it, and leaves nothing on the GPU."""

from __future__ import annotations

import json
from typing import Any

from emovllm_server.bench import machine


def describe() -> dict[str, Any]:
    """free, total: bytes of the card's memory; on a CPU, None."""
    import torch

    gpu = torch.cuda.is_available()
    free, total = torch.cuda.mem_get_info() if gpu else (None, None)
    return {
        **machine.describe(),
        **machine.versions(),
        **machine.driver(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "device": "cuda" if gpu else "cpu",
        "free": free,
        "total": total,
    }


if __name__ == "__main__":
    print(json.dumps(describe()))
