"""A vLLM engine in a process of its own, driven by JSON lines: `python worker.py '{"model": ...}'`.

Each line in is {"prompts": [[token ids]], "fields": [{emotion fields}], "params": [{sampling parameters}], "loras":
[folder or null], "max_tokens": n}; each line out is {"outputs": [{"tokens", "logprobs", "others"}], "metrics":
{name: value}} or {"error": text}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    from vllm import LLM

    try:
        llm = LLM(**json.loads(sys.argv[1]))
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise SystemExit(1) from error
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        try:
            reply = generate(llm, **json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


def generate(
    llm: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    params: list[dict[str, Any]],
    loras: list[str | None],
    max_tokens: int,
) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt

    greedy = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 0}
    sampling = [
        SamplingParams(**{**greedy, "extra_args": asked or None, **changes})
        for asked, changes in zip(fields, params, strict=True)
    ]
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
        sampling,
        use_tqdm=False,
        lora_request=[lora_request(path) for path in loras] if any(loras) else None,
    )
    return {
        "outputs": [
            {**completion(output.outputs[0]), "others": [completion(other) for other in output.outputs[1:]]}
            for output in outputs
        ],
        "metrics": {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")},
    }


def completion(output: Any) -> dict[str, Any]:
    return {
        "tokens": list(output.token_ids),
        "logprobs": [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)],
    }


_lora_ids: dict[str, int] = {}


def lora_request(path: str | None) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(path, _lora_ids.setdefault(path, len(_lora_ids) + 1), path) if path else None


if __name__ == "__main__":
    main()
