"""The sites in vLLM's own classes of models, built on the meta device, where nothing is computed.

Run as a program: models' folders in; for each of them `{folder: [[kind, layer, width], ...]}` out, of blocks of experts
how many there are; or what went wrong.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.utils.network_utils import get_open_port

from emovllm.architectures import parse_site
from emovllm.engine import experts
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.form import Form
from support.pictures import stand_in


def main(folders: list[str]) -> None:
    # vLLM looks at each class of model in a process of its own, which imports everything again.
    registry._run_in_subprocess = lambda inspect: inspect()
    stand_in()
    for folder in folders:
        try:
            found: Any = sites(folder)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        print("SITES", json.dumps({folder: found}), flush=True)


def sites(folder: str) -> list[list[Any]]:
    args = EngineArgs(folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, max_model_len=64)
    config = args.create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"tcp://127.0.0.1:{get_open_port()}", 0, "gloo")
            initialize_model_parallel()
        with torch.device("meta"):
            model = initialize_model(vllm_config=config)
    sites: list[list[Any]] = [
        [*site, module.input_size]
        for name, module in model.named_modules()
        if isinstance(module, RowParallelLinear) and (site := parse_site(name)) is not None
    ]
    blocks = experts.install(model, None, (1, 64), Coefficients(1, 8, torch.device("cpu"), 1), Form(compiled=False))
    return sorted(sites + [["experts", block.number, block.router.output_size] for block in blocks])


if __name__ == "__main__":
    main(sys.argv[1:])
