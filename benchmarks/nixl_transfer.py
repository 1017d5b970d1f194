#!/usr/bin/env python3
"""vLLM's NixlConnector between a prefill and a decode engine on a CPU, against Hugging Face with hooks.

    scripts/env pip install --no-deps nixl nixl-cu12     # some 240 MB
    scripts/env python benchmarks/nixl_transfer.py

Both engines have a tiny random model and a strong circuit. The prompts are asked for twice, the second time each with
another's emotion, so that the caches of both engines hold the first one's. Ends with 1 where a reply differs, where a
prompt was not fetched, or where a request with another emotion than its prompt's is not refused.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from emovllm.engine.transfer import PARAMS
from support.circuits import random_circuit
from support.engine import Ask, Engine, EngineError, assert_same
from support.models import tiny_model
from support.oracle import Oracle
from support.series import Series, mixed_batch

TOKENS = 8
PORT = 5710
# What a router sends a prefill instance.
AWAY = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None}


def start(folder: Path, model: str, circuit: Path, role: str, port: int) -> Engine:
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port),
        "UCX_TLS": "tcp,self,sm",
    }
    (folder / role).mkdir()
    transfer = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
    return Series(folder / role, settings).start(model, circuit, kv_transfer_config=transfer)


def check(prefill: Engine, decode: Engine, oracle: Oracle) -> None:
    """Raises: AssertionError."""
    asks = mixed_batch()
    others = [Ask(ask.prompt, other.fields) for ask, other in zip(asks, asks[1:] + asks[:1], strict=True)]
    fetched = 0.0
    for batch in (asks, others):
        sent = [Ask(ask.prompt, {**ask.fields, PARAMS: AWAY}) for ask in batch]
        told = [reply.transfer for reply in prefill.generate(sent, 1)]
        sent = [Ask(ask.prompt, {**ask.fields, PARAMS: there}) for ask, there in zip(batch, told, strict=True)]
        assert_same(decode.generate(sent, TOKENS), oracle.generate(batch, TOKENS))
        hits = decode.metric("vllm:external_prefix_cache_hits")
        assert hits > fetched, "nothing was fetched"
        print(
            f"{len(batch)} replies are equal; of {sum(len(ask.prompt) for ask in batch)} tokens of their prompts, "
            f"{hits - fetched:.0f} were fetched"
        )
        fetched = hits
    refusal = ""
    try:
        decode.generate([Ask(asks[0].prompt, {**asks[0].fields, PARAMS: told[0]})], TOKENS)
    except EngineError as error:
        refusal = str(error)
    assert "the prefill instance steered" in refusal, f"another emotion than the prompt's: {refusal or 'taken'}"
    print("another emotion than the prompt's is refused")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = tiny_model(folder / "model", initializer_range=0.3)
        circuit = random_circuit(model, folder / "circuit")
        with (
            start(folder, model, circuit, "kv_producer", PORT) as prefill,
            start(folder, model, circuit, "kv_consumer", PORT + 1) as decode,
        ):
            check(prefill, decode, Oracle(model, circuit))


if __name__ == "__main__":
    main()
