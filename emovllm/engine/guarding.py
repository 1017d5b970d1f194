"""Guards (`emovllm.guards`) in the front end: each request is watched there, and ended with the token at which a guard
acted, in the way in which vLLM ends a reply at a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emovllm.catalogue import Catalogue
from emovllm.emotion import Wire
from emovllm.guards import Acted, Guard, Watch


def guarded(wire: Wire, catalogue: Catalogue) -> Wire:
    """A request as it crosses: with guards, read whether it asked for that or not."""
    guards = catalogue.policy.guards
    if not guards:
        return wire
    return wire._replace(reading=catalogue.reading, guards=guards, untold=wire.untold or wire.reading is None)


def refuse_guarded(guards: tuple[Guard, ...], what: str) -> None:
    """Raises: VLLMValidationError, which the server turns into a 400, where there are guards."""
    from vllm.exceptions import VLLMValidationError

    if guards:
        raise VLLMValidationError(
            f"this server watches every reply ({', '.join(map(str, guards))}), and cannot watch {what}",
            parameter="emotion_guard",
        )


def watch(state: Any, wire: Wire | None) -> None:
    """Begins with a request; state: vLLM's RequestState."""
    if wire is not None and wire.guards and wire.reading is not None:
        state.emotion_watch = Watch(wire.guards, wire.reading.labels)


def see(read: Sequence[tuple[Any, Any, bytes]]) -> None:
    """Takes in what was read in a step, before vLLM processes its outputs, and has guards end replies.

    read: vLLM's RequestState, the engine core's output, and the logits of its tokens, float32 [tokens, labels].
    """
    watches: list[tuple[Watch, Any, Any]] = []
    parts: list[np.ndarray] = []
    for state, output, rows in read:
        seen: Watch | None = getattr(state, "emotion_watch", None)
        if seen is not None and seen.ended is None:
            watches.append((seen, state, output))
            parts.append(np.frombuffer(rows, np.float32).reshape(-1, seen.width))
    if not watches:
        return
    # All requests of a server have its guards, so that one softmax serves a step.
    over = watches[0][0].over(np.concatenate(parts))
    begin = 0
    for (seen, state, output), part in zip(watches, parts, strict=True):
        before = state.detokenizer.num_output_tokens()
        seen.see(over[begin : begin + len(part)])
        begin += len(part)
        if seen.ended is not None:
            _end(state, output, seen.ended.token + 1 - before, seen.ended.guard)


def _end(state: Any, output: Any, kept: int, guard: Guard) -> None:
    """The reply ends with as many tokens of this output, as if a stop string did: what vLLM goes by from there on is
    what its detokenizer says, by which it also has the engine stop."""
    detokenizer, cut = state.detokenizer, kept < len(output.new_token_ids)
    if cut:
        del output.new_token_ids[kept:]
        for name in ("new_logprobs", "new_sampling_mask"):
            if (lists := getattr(output, name, None)) is not None:
                setattr(output, name, lists.slice_request(0, kept))

    def update(new_token_ids: list[int], stop_terminated: bool) -> str:
        del detokenizer.update
        # A token that ends replies is not part of the text; where it was cut off there is none.
        found: str | None = detokenizer.update(new_token_ids, stop_terminated and not cut)
        return found or guard.reason

    detokenizer.update = update


def acts_of(state: Any) -> list[Acted]:
    """What guards did to a request so far; state: vLLM's RequestState."""
    seen: Watch | None = getattr(state, "emotion_watch", None)
    return [] if seen is None else seen.acted(state.detokenizer.num_output_tokens())


def tell(state: Any, completion: Any) -> None:
    """One of vLLM's completions has it once it ended."""
    if completion.finish_reason is not None and hasattr(state, "emotion_watch"):
        completion.emotion_guard = acts_of(state)


def told(completion: Any) -> bool:
    """Whether `guards_of` one of vLLM's completions is known."""
    return hasattr(completion, "emotion_guard")


def guards_of(completion: Any) -> list[Acted]:
    """What guards did to one of vLLM's completions; known with its end."""
    return getattr(completion, "emotion_guard", [])
