"""Which blocks requests share: those whose tokens were injected alike, at the same positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emovllm.emotion import KEY

BLOCK = 32
TOKENS = list(range(4 * BLOCK))

Hashes = Callable[..., list[Any]]
Requests = Callable[..., Any]


@pytest.fixture(scope="module")
def requests() -> Requests:
    """`requests(prompt_len, scope, weights, prompt_of_beam)`: a request whose text is always the same."""
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.request import Request

    from emovllm.engine.scheduler import separate_emotions

    separate_emotions.install()
    kv_cache_utils.init_none_hash(sha256)
    hasher = kv_cache_utils.get_request_block_hasher(BLOCK, sha256)

    def request(prompt: int, scope: str = "generation", weight: float | None = 1.0, beam: int | None = None) -> Any:
        # As it comes from another process.
        extra = {"emovllm": ["digest", {"anger": weight}, scope, "circuit", beam]} if weight is not None else None
        asked = Request(
            request_id="0",
            prompt_token_ids=TOKENS[:prompt],
            sampling_params=SamplingParams(max_tokens=len(TOKENS), extra_args=extra),
            pooling_params=None,
            block_hasher=hasher,
        )
        asked.append_output_token_ids(TOKENS[prompt:])
        return asked

    return request


@pytest.fixture(scope="module")
def hashes(requests: Requests) -> Hashes:
    """The hashes of the blocks of such a request."""
    return lambda *args, **kwargs: list(requests(*args, **kwargs).block_hashes)


def shared(a: list[Any], b: list[Any]) -> int:
    """Blocks that two requests have in common; hashes are chained, so that no later one can be."""
    assert len(a) == len(b) == len(TOKENS) // BLOCK
    return sum(x == y for x, y in zip(a, b, strict=True))


def test_equal_requests_share_everything(hashes: Hashes) -> None:
    assert shared(hashes(40), hashes(40)) == 4


def test_emotions_share_the_prompts_blocks_with_each_other_and_with_plain_requests(hashes: Hashes) -> None:
    assert shared(hashes(2 * BLOCK + 1), hashes(2 * BLOCK + 1, weight=0.5)) == 2
    assert shared(hashes(2 * BLOCK + 1), hashes(2 * BLOCK + 1, weight=None)) == 2
    # The prompt's last token is injected.
    assert shared(hashes(2 * BLOCK), hashes(2 * BLOCK, weight=None)) == 1


def test_a_block_is_not_shared_where_the_prompt_ends_elsewhere_in_it(hashes: Hashes) -> None:
    # The tokens in between were injected in one of them only, though all are the same, and the emotion is.
    assert shared(hashes(40), hashes(50)) == 1
    assert shared(hashes(40, "prompt_last"), hashes(50, "prompt_last")) == 1


def test_a_reply_is_not_shared_with_a_prompt_that_quotes_it(hashes: Hashes) -> None:
    assert shared(hashes(40), hashes(4 * BLOCK)) == 1


def test_what_is_injected_everywhere_is_shared_whatever_was_the_prompt(hashes: Hashes) -> None:
    assert shared(hashes(40, "all"), hashes(50, "all")) == 4
    assert shared(hashes(40, "all"), hashes(40, "all", weight=None)) == 0


def test_a_beams_steps_share_what_the_steps_before_have_generated(hashes: Hashes) -> None:
    assert shared(hashes(40), hashes(90, beam=40)) == 4


def test_events_say_what_the_hash_of_each_block_is_made_of(requests: Requests) -> None:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import hash_block_tokens, maybe_convert_block_hash

    pool = BlockPool(8, enable_caching=True, hash_block_size=BLOCK, enable_kv_cache_events=True)
    request = requests(40)
    pool.cache_full_blocks(request, pool.get_new_blocks(4), 0, 4, BLOCK, 0)
    (event,) = pool.take_events()
    plain, *steered = event.extra_keys
    assert plain is None
    assert steered == [('["digest", [["anger", 1.0]], "generation", "circuit"] from 39',)] * 3
    # Who knows the key's name, too, can make the hashes of the tokens.
    parent, rebuilt = None, []
    for block, keys in enumerate(event.extra_keys):
        tokens = event.token_ids[block * BLOCK : (block + 1) * BLOCK]
        parent = hash_block_tokens(sha256, parent, tokens, keys and tuple((KEY, key) for key in keys))
        rebuilt.append(maybe_convert_block_hash(parent))
    assert rebuilt == event.block_hashes
