"""vLLM's KV connectors, by what they find a request's keys and values by: those that tell emotions apart are allowed.

From its first steered position on, a request's keys and values differ from those of the same tokens without the
emotion. vLLM's block hashes hold the emotion (emovllm/engine/scheduler.py), and a request's own blocks are its own.
Hashes that a connector makes of token ids itself hold nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_HASHES = "vLLM's block hashes"
_BLOCKS = "the request's own blocks"
_TOKENS = "hashes of token ids"
_PARTS = "what its parts go by"
_OFFLOAD = "use OffloadingConnector (--kv-offloading-size), whose keys are vLLM's"
_MULTI = "MultiConnector"


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector of vLLM's.

    goes_by: what it finds keys and values by.
    refused: why, and what to do instead; empty where it is allowed.
    """

    name: str
    goes_by: str
    refused: str = ""


def _of_tokens(name: str, instead: str = _OFFLOAD) -> Connector:
    return Connector(name, _TOKENS, f"it goes by hashes of token ids, which emotions have in common; {instead}")


CONNECTORS = (
    Connector("OffloadingConnector", _HASHES),
    Connector("SimpleCPUOffloadConnector", _HASHES),
    Connector("MooncakeStoreConnector", _HASHES),
    Connector("NixlConnector", _BLOCKS),
    Connector("NixlPullConnector", _BLOCKS),
    Connector("NixlPushConnector", _BLOCKS),
    Connector("MoRIIOConnector", _BLOCKS),
    Connector(_MULTI, _PARTS),
    Connector(
        "MooncakeConnector",
        _BLOCKS,
        "its prefill instance tells nothing to the router, so that the decode instance cannot compare emotions; use "
        "NixlConnector, or MooncakeStoreConnector",
    ),
    _of_tokens("LMCacheConnectorV1"),
    _of_tokens("LMCacheMPConnector"),
    _of_tokens("FlexKVConnectorV1"),
    _of_tokens("HF3FSKVConnector", "use MooncakeStoreConnector, or OffloadingConnector with a tier of files"),
    _of_tokens("ExampleConnector"),
    Connector(
        "ExampleHiddenStatesConnector",
        "nothing: it writes hidden states to files",
        "the files do not say which emotion is in them; drop it",
    ),
    Connector(
        "HiSparseConnector",
        "rows of sparse attention",
        "the models that it is for are computed by kernels that go past the circuit's projections; drop it",
    ),
    Connector(
        "DecodeBenchConnector",
        "nothing: it makes values up",
        "it fills the cache of a prompt with made-up values, with or without an emotion; drop it",
    ),
)
_KNOWN = {connector.name: connector for connector in CONNECTORS}


def refusals(vllm_config: VllmConfig, trusted: Sequence[str] = ()) -> list[str]:
    """Each connector of a configuration that may mix emotions, with what asks for it, why and what to do instead.

    trusted: names of connectors that are not vLLM's, which the user knows to go by block hashes or own blocks.
    """
    transfer = vllm_config.kv_transfer_config
    if transfer is None or transfer.kv_connector is None:
        return []
    parts = _parts(transfer.kv_connector, transfer.kv_connector_module_path, transfer.kv_connector_extra_config)
    option = _option(vllm_config)
    return [f"{name} ({option}): {why}" for name, module, extra in parts if (why := _why(name, module, extra, trusted))]


def _parts(name: str, module: str | None, extra: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    """Name, module path and settings of a connector, and of those that it is made of."""
    yield name, module, extra
    if name == _MULTI and not module:
        for part in extra.get("connectors", []):
            yield from _parts(
                str(part.get("kv_connector")),
                part.get("kv_connector_module_path"),
                part.get("kv_connector_extra_config") or {},
            )


def _why(name: str, module: str | None, extra: Mapping[str, Any], trusted: Sequence[str]) -> str:
    if module or name not in _KNOWN:
        if name in trusted:
            return ""
        return (
            "a connector that is not vLLM's may go by token ids alone, which emotions have in common; drop it, or, if "
            "it goes by vLLM's block hashes or moves a request's own blocks, add to additional_config's 'emovllm' "
            f'"trusted_connectors": ["{name}"]'
        )
    if extra.get("bidirectional_kv_xfer"):
        return (
            "what a reply left in the cache would be loaded for a prompt that quotes it, where nothing is steered; "
            "drop bidirectional_kv_xfer"
        )
    return _KNOWN[name].refused


def _option(vllm_config: VllmConfig) -> str:
    """What asks for a connector: vLLM makes a --kv-transfer-config of the other."""
    cache = vllm_config.cache_config
    if getattr(cache, "kv_offloading_size", None) is None:
        return "--kv-transfer-config"
    backend = getattr(cache, "kv_offloading_backend", "native")
    return "--kv-offloading-size" if backend == "native" else f"--kv-offloading-backend {backend}"
