"""A connector that moves a request's own blocks from a prefill engine to a decode engine through files, on a CPU. It
speaks to the router as vLLM's NixlConnector does."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

# Of the engine in this process: scheduler and worker are one process here.
_caches: dict[str, torch.Tensor] = {}


@dataclass
class Loads(KVConnectorMetadata):
    # Files, and the blocks that each goes to, by request.
    files: dict[str, tuple[str, list[int]]] = field(default_factory=dict)


class Carrier(KVConnectorBase_V1):
    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._folder = Path(vllm_config.kv_transfer_config.kv_connector_extra_config["folder"])
        self._loads = Loads()
        self._received: set[str] = set()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        _caches.clear()
        _caches.update(kv_caches)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for req_id, (file, blocks) in self._get_connector_metadata().files.items():
            for name, layers in torch.load(file).items():
                _caches[name][blocks] = layers
            self._received.add(req_id)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        received, self._received = self._received, set()
        return set(), received

    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...
    def wait_for_save(self) -> None: ...

    def on_new_request(self, request: Any) -> None:
        # As NixlConnector has a prefill engine of a model with states leave the prompt's last token to the other.
        if (request.kv_transfer_params or {}).get("all_but_last"):
            request.prompt_token_ids.pop()
            request._all_token_ids.pop()
            request.num_prompt_tokens -= 1

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        params = request.kv_transfer_params or {}
        there = params["tokens"] if params.get("do_remote_prefill") else 0
        return max(0, there - num_computed_tokens), there > num_computed_tokens

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            (ids,) = blocks.get_block_ids()
            self._loads.files[request.request_id] = request.kv_transfer_params["file"], list(ids)
            request.kv_transfer_params["do_remote_prefill"] = False

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        loads, self._loads = self._loads, Loads()
        return loads

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if not (request.kv_transfer_params or {}).get("do_remote_decode"):
            return False, None
        file = str(self._folder / uuid.uuid4().hex)
        torch.save({name: cache[block_ids] for name, cache in _caches.items()}, file)
        told = {"file": file, "tokens": request.num_prompt_tokens}
        return False, {"do_remote_prefill": True, "do_remote_decode": False, **told}
