"""A vLLM engine in a process of its own, driven by JSON lines: `python worker.py '{"model": ...}'`.

Each line in is {"prompts": [[token ids]], "fields": [{emotion fields}], "max_tokens": n}; each line out is
{"outputs": [{"tokens", "logprobs"}], "metrics": {name: value}} or {"error": text}.
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


def generate(llm: Any, prompts: list[list[int]], fields: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt

    params = [
        SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=0, extra_args=asked or None)
        for asked in fields
    ]
    outputs = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)
    return {
        "outputs": [
            {
                "tokens": list(output.outputs[0].token_ids),
                "logprobs": [
                    step[token].logprob
                    for step, token in zip(output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)
                ],
            }
            for output in outputs
        ],
        "metrics": {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")},
    }


if __name__ == "__main__":
    main()
