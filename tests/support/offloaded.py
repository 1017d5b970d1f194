"""vLLM's offloading to the processor's memory on a CPU, whose own worker needs a GPU: its connector, keys, manager and
evictions, with copies that are done at once."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """One group of caches, a block a chunk."""

    def __init__(self, caches: list[torch.Tensor], chunks: int) -> None:
        self._caches = caches  # each [blocks, bytes]
        self._chunks = [torch.zeros(chunks, cache.shape[1], dtype=cache.dtype) for cache in caches]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        for cache, chunks in zip(self._caches, self._chunks, strict=True):
            chunks[torch.from_numpy(dst_spec.block_ids).long()] = cache[torch.from_numpy(src_spec.block_ids).long()]
        return self._done(job_id)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        for cache, chunks in zip(self._caches, self._chunks, strict=True):
            cache[torch.from_numpy(dst_spec.block_ids).long()] = chunks[torch.from_numpy(src_spec.block_ids).long()]
        return self._done(job_id)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None: ...

    def _done(self, job_id: int) -> bool:
        self._finished.append(TransferResult(job_id, True))
        return True


class CopyingSpec(CPUOffloadingSpec):
    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1
        assert len(kv_caches.group_data_refs) == 1
        return CopyingWorker([cache.tensor for cache in kv_caches.tensors], self.num_chunks)
