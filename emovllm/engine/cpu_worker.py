"""The CPU worker, apart from the GPU one: importing vLLM's has effects of its own."""

from vllm.v1.worker.cpu_worker import CPUWorker

from emovllm.engine.worker import EmotionWorkerMixin


class EmotionCPUWorker(EmotionWorkerMixin, CPUWorker):
    """vLLM's CPU worker."""
