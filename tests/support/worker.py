"""A vLLM engine in a process of its own, driven by JSON lines: `python worker.py '{"model": ...}'`, or '{}' where the
first engine is asked for by a line as well.

Each line in is {"prompts": [[token ids]], "fields": [{emotion fields}], "params": [{sampling parameters}], "loras":
[folder or null], "images": [seed or null], "max_tokens": n}; each line out is {"outputs": [{"tokens", "logprobs",
"others"}], "metrics": {name: value}} or {"error": text}. {"config": {...}, "env": {...}} ends the engine and starts
another in the same process, which has vLLM imported already, with these changes of the process's first environment;
{"vectors": true} asks for the folded vectors of each site, and {"columns": n} for the first n columns of each
projection's weights as its kernel multiplies by them, in-process engines only; {"buffers": true} asks for the names of
our buffers; {"method": name, "args": [...], "kwargs": {...}} calls a method of `LLM` and answers {"result": ...}. A
second argument names a function of hooks.py to call first.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import traceback
from typing import Any

from images import image
from pictures import PICTURES, stand_in

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def freeze_imports() -> None:
    """What is imported stays out of the garbage collector's sight. vLLM has it collect ten times for each engine, which
    takes most of the time of a tiny one, and would have it see everything again with the first engine that ends."""
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None


def fork_processes() -> None:
    """Ranks and engines begin as copies of this process, which has imported vLLM: on a CPU vLLM has each import it
    anew. Here one thread computes, so that there is none that a copy would miss."""
    from vllm.v1.engine import coordinator, utils
    from vllm.v1.executor import multiproc_executor

    for module in (coordinator, utils, multiproc_executor):
        module.get_mp_context = lambda: multiprocessing.get_context("fork")


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to standard output
    if len(sys.argv) > 2:
        import hooks

        getattr(hooks, sys.argv[2])()
    from vllm import LLM
    from vllm.model_executor.models import registry

    # vLLM looks at each class of model in a process of its own, which imports everything again.
    registry._run_in_subprocess = lambda inspect: inspect()
    fork_processes()
    freeze_imports()
    ask_for_amx()
    environment = dict(os.environ)
    config = json.loads(sys.argv[1])
    begun = bool(config)
    try:
        llm = LLM(**config) if begun else None
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise SystemExit(1) from error
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "config" in request:
                if begun:
                    llm = None
                    end_engine()
                begun = True
                os.environ.clear()
                os.environ.update(environment | request["env"])
                if PICTURES in request["env"]:
                    stand_in()
                llm = LLM(**request["config"])
                reply = {"ready": True}
            elif "vectors" in request:
                reply = {"vectors": vectors(llm)}
            elif "columns" in request:
                reply = {"columns": columns(llm, request["columns"])}
            elif "buffers" in request:
                reply = {"buffers": buffers(llm)}
            elif "method" in request:
                reply = {"result": getattr(llm, request["method"])(*request["args"], **request["kwargs"])}
            else:
                reply = generate(llm, **request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


def ask_for_amx() -> None:
    """As our workers do (emovllm/engine/cpu_worker.py), for engines without ours."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def end_engine() -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.triton_utils import dispatcher

    # The CPU's kernels stay in place, and vLLM's search for where to put them fails on modules of Numba.
    dispatcher._rebind_kernels = lambda overrides: None
    gc.collect()  # an engine is full of cycles
    cleanup_dist_env_and_memory()


def vectors(llm: Any) -> dict[str, list[list[float]]]:
    def of_worker(worker: Any) -> dict[str, list[list[float]]]:
        return {site.key: site.layer.emotion_vectors.tolist() for site in worker.emotion_sites}

    return {key: rows for rank in llm.collective_rpc(of_worker) for key, rows in rank.items()}


def buffers(llm: Any) -> list[str]:
    def of_worker(worker: Any) -> set[str]:
        names = {name.rpartition(".")[2] for name, _ in worker.model_runner.get_model().named_buffers()}
        return {name for name in names if name.startswith(("emotion", "emovllm"))}

    return sorted(set().union(*llm.collective_rpc(of_worker)))


def columns(llm: Any, count: int) -> dict[str, list[list[float]]]:
    def of_worker(worker: Any) -> dict[str, list[list[float]]]:
        import torch
        from vllm.model_executor.layers.linear import RowParallelLinear

        found = {}
        for name, layer in worker.model_runner.get_model().named_modules():
            if isinstance(layer, RowParallelLinear):
                rows = torch.eye(count, layer.input_size_per_partition, dtype=worker.model_config.dtype)
                found[name] = layer.quant_method.apply(layer, rows).float().tolist()
        return found

    (found,) = llm.collective_rpc(of_worker)
    return found


def generate(
    llm: Any,
    prompts: list[list[int]],
    fields: list[dict[str, Any]],
    params: list[dict[str, Any]],
    loras: list[str | None],
    images: list[int | None],
    max_tokens: int,
) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import StructuredOutputsParams

    greedy = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 0}
    for changes in params:
        if "structured_outputs" in changes:
            changes["structured_outputs"] = StructuredOutputsParams(**changes["structured_outputs"])
    sampling = [
        SamplingParams(**{**greedy, "extra_args": asked or None, **changes})
        for asked, changes in zip(fields, params, strict=True)
    ]
    outputs = llm.generate(
        [
            TokensPrompt(prompt_token_ids=ids, **({} if seed is None else {"multi_modal_data": {"image": image(seed)}}))
            for ids, seed in zip(prompts, images, strict=True)
        ],
        sampling,
        use_tqdm=False,
        lora_request=[lora_request(path) for path in loras] if any(loras) else None,
    )
    return {
        "outputs": [
            {
                **completion(output.outputs[0]),
                "others": [completion(other) for other in output.outputs[1:]],
                "prompt_logprobs": prompt_logprobs(output),
                "transfer": output.kv_transfer_params,
            }
            for output in outputs
        ],
        "metrics": {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")},
    }


def completion(output: Any) -> dict[str, Any]:
    return {
        "tokens": list(output.token_ids),
        "logprobs": [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)],
        "top": [
            [[token, entry.logprob] for token, entry in sorted(step.items(), key=lambda item: item[1].rank)]
            for step in output.logprobs
            if len(step) > 1
        ],
        "read": read.logits.tolist() if (read := getattr(output, "emotion_readout", None)) is not None else [],
        **guarded(output),
    }


def guarded(output: Any) -> dict[str, Any]:
    """Of an engine with guards: how a reply ended, and what they did."""
    if not hasattr(output, "emotion_guard"):
        return {}
    ended = [output.finish_reason, output.stop_reason]
    return {"ended": ended, "acted": [acted.body() for acted in output.emotion_guard]}


def prompt_logprobs(output: Any) -> list[float]:
    steps = zip(output.prompt_logprobs or [], output.prompt_token_ids, strict=False)
    return [step[token].logprob for step, token in steps if step is not None]


_lora_ids: dict[str, int] = {}


def lora_request(path: str | None) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(path, _lora_ids.setdefault(path, len(_lora_ids) + 1), path) if path else None


if __name__ == "__main__":
    main()
