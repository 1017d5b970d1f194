"""How fast the paper's way is: Hugging Face generate with hooks, one prompt at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emovllm.errors import EvaluationError

MODULE = "emovllm_offline.model.timing_process"


def measure(
    model: str, circuit: str | Path, prompts: Sequence[Sequence[int]], emotion: str, output_tokens: int
) -> dict[str, Any]:
    """Replies of exactly `output_tokens` to some of the evaluation's own prompts, in the model's floating-point type.

    Raises: EvaluationError.
    """
    arguments = {"model": model, "circuit": str(circuit)}
    asked = {
        "prompts": [list(prompt) for prompt in prompts],
        "fields": [{"emotion": emotion}] * len(prompts),
        "output_tokens": output_tokens,
        "one_by_one": True,
    }
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", MODULE, json.dumps(arguments)],
        input=json.dumps(asked) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    errors = [line["error"] for line in lines if "error" in line]
    if errors or len(lines) != 2:
        raise EvaluationError(f"Hugging Face could not be timed: {(errors or [ended.stderr[-300:]])[0]}")
    about, reply = lines
    return {
        "requests": len(prompts),
        "output_tokens": output_tokens,
        "seconds": reply["seconds"],
        "requests_per_s": len(prompts) / reply["seconds"],
        "tokens_per_s": len(prompts) * output_tokens / reply["seconds"],
        "threads": about["threads"],
        "with_start": time.perf_counter() - start,
    }
