"""The sites in vLLM's own class of a model, built on the meta device, where nothing is computed.

Run as a program: a model's folder in, `[[kind, layer, width], ...]` out; of blocks of experts how many there are.
"""

from __future__ import annotations

import json
import sys

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.network_utils import get_open_port

from emovllm.architectures import parse_site
from emovllm.engine import experts
from emovllm.engine.coefficients import Coefficients


def main(folder: str) -> None:
    args = EngineArgs(folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, max_model_len=64)
    config = args.create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{get_open_port()}", 0, "gloo")
        initialize_model_parallel()
        with torch.device("meta"):
            model = initialize_model(vllm_config=config)
    sites = [
        [*site, module.input_size]
        for name, module in model.named_modules()
        if isinstance(module, RowParallelLinear) and (site := parse_site(name)) is not None
    ]
    blocks = experts.install(model, None, (1, 64), Coefficients(1, 8, torch.device("cpu"), 1), compiled=False)
    sites += [["experts", block.number, block.router.output_size] for block in blocks]
    print("SITES", json.dumps(sorted(sites)))


if __name__ == "__main__":
    main(sys.argv[1])
