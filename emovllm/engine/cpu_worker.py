"""The CPU worker, apart from the GPU one: importing vLLM's has effects of its own."""

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

from emovllm.engine.worker import EmotionWorkerMixin


class EmotionCPUWorker(EmotionWorkerMixin, CPUWorker):
    """vLLM's CPU worker."""

    def init_device(self) -> None:
        # Linux kills a process that uses AMX tiles without having asked for them. vLLM's own AMX kernels (attention,
        # projections below 1 MiB) leave that to oneDNN, which no small or quantised model comes to.
        if torch.cpu._is_amx_tile_supported():
            torch.cpu._init_amx()
        super().init_device()
