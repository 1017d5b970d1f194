"""Which KV connectors are served, and that all that vLLM has are in the table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emovllm.engine.connectors import CONNECTORS, refusals

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "connectors.md"
ALLOWED = [connector.name for connector in CONNECTORS if not connector.refused]


def config(name: str | None, module: str | None = None, offloading: str | None = None, **extra: Any) -> Any:
    transfer = SimpleNamespace(kv_connector=name, kv_connector_module_path=module, kv_connector_extra_config=extra)
    cache = SimpleNamespace(kv_offloading_size=offloading and 1.0, kv_offloading_backend=offloading or "native")
    return SimpleNamespace(kv_transfer_config=transfer, cache_config=cache)


def multi(*parts: str, **extra: Any) -> Any:
    connectors = [{"kv_connector": part, "kv_connector_extra_config": extra} for part in parts]
    return config("MultiConnector", connectors=connectors)


def test_every_connector_of_the_installed_vllm_is_judged() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    assert set(KVConnectorFactory._registry) == {connector.name for connector in CONNECTORS}


@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda connector: connector.name)
def test_connectors_that_go_by_hashes_or_own_blocks_are_served_and_others_refused_by_name(connector: Any) -> None:
    expected = [f"{connector.name} (--kv-transfer-config): {connector.refused}"] if connector.refused else []
    assert refusals(config(connector.name)) == expected


def test_without_a_connector_nothing_is_refused() -> None:
    assert refusals(config(None)) == []
    assert refusals(SimpleNamespace(kv_transfer_config=None)) == []


def test_a_refusal_names_the_option_that_asks_for_the_connector() -> None:
    assert refusals(config("OffloadingConnector", offloading="native")) == []
    (refusal,) = refusals(config("LMCacheMPConnector", offloading="lmcache"))
    assert refusal.startswith("LMCacheMPConnector (--kv-offloading-backend lmcache): ")


def test_all_parts_of_several_must_be_allowed() -> None:
    assert refusals(multi("NixlConnector", "OffloadingConnector")) == []
    refused = refusals(multi("NixlConnector", "LMCacheConnectorV1", "ExampleConnector"))
    assert [refusal.split(" ")[0] for refusal in refused] == ["LMCacheConnectorV1", "ExampleConnector"]
    assert "drop bidirectional_kv_xfer" in refusals(multi("NixlConnector", bidirectional_kv_xfer=True))[0]


@pytest.mark.parametrize("settings", [{"name": "Theirs"}, {"name": "OffloadingConnector", "module": "theirs"}])
def test_connectors_that_are_not_vllms_are_refused_unless_the_user_vouches_for_them(settings: dict[str, str]) -> None:
    theirs, name = config(**settings), settings["name"]
    (refusal,) = refusals(theirs, ["Another"])
    assert f'"trusted_connectors": ["{name}"]' in refusal
    assert refusals(theirs, [name]) == []
    # That is no word for one of vLLM's own.
    assert len(refusals(config("ExampleConnector"), ["ExampleConnector"])) == 1


def test_the_docs_have_the_table() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    verdicts = [f"refused: {connector.refused}" if connector.refused else "served" for connector in CONNECTORS]
    assert rows == [
        f"| `{connector.name}` | {connector.goes_by} | {verdict} |"
        for connector, verdict in zip(CONNECTORS, verdicts, strict=True)
    ]
