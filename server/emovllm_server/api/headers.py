"""Headers of ASGI messages, as the middleware reads and changes them."""

from __future__ import annotations

from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]


def is_stream(headers: Headers) -> bool:
    """Whether an answer is a stream of events."""
    kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
    return kind.startswith(b"text/event-stream")


def with_length(headers: Headers, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]
