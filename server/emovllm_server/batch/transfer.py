"""Batch files that lie behind a URL, as storage services hand them out: fetched by GET, sent by PUT."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path

import httpx

from emovllm.errors import BatchFileError, TransferError
from emovllm.files import decode, read_text

# A batch file of OpenAI's has at most 200 MB.
_MAX_BYTES = 2**30
_ATTEMPTS = 5
_PAUSE_S = 5.0
# In seconds, without a byte: a large file takes as long as it takes.
_TIMEOUT_S = 300.0
# Of HTTP's statuses below 500, those that another attempt may change.
_PASSING = (408, 425, 429)


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def public_name(place: str) -> str:
    """A place as messages name it: what follows a URL's question mark may be a key."""
    return place.partition("?")[0] if is_url(place) else place


def read(place: str) -> str:
    """The text of a file or URL. Raises: BatchFileError, TransferError."""
    if not is_url(place):
        return read_text(Path(place), BatchFileError, _MAX_BYTES)
    try:
        reply = httpx.get(place, timeout=_TIMEOUT_S, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TransferError(f"{public_name(place)}: could not be fetched ({_why(error)})") from None
    if reply.status_code != 200:
        raise TransferError(f"{public_name(place)}: could not be fetched (HTTP {reply.status_code})")
    return decode(public_name(place), reply.content, BatchFileError)


class Output:
    """Where replies are written: the file itself, or one that is sent to a URL when the batch is done."""

    def __init__(self, place: str, folder: str | None) -> None:
        """folder: where the file for a URL lies until then (default: a temporary one). Raises: BatchFileError."""
        self._place = place
        self.path = Path(place)
        if not is_url(place):
            return
        if folder is not None and not Path(folder).is_dir():
            raise BatchFileError(f"--output-tmp-dir {folder}: no such folder")
        # The same command finds the same file again, with whatever key its URL has then.
        digest = hashlib.sha256(public_name(place).encode()).hexdigest()[:16]
        self.path = Path(folder or tempfile.mkdtemp(prefix="emovllm-batch-")) / f"emovllm-batch-{digest}.jsonl"

    def deliver(self) -> None:
        """Sends the file, once all of it is written, and removes it. Raises: TransferError; the file is kept then."""
        if not is_url(self._place):
            return
        for attempt in range(1, _ATTEMPTS + 1):
            trouble, passing = self._send()
            if trouble is None:
                self.path.unlink()
                return
            if not passing or attempt == _ATTEMPTS:
                break
            print(f"emovllm: {public_name(self._place)}: {trouble}; once more in {_PAUSE_S:.0f} s", file=sys.stderr)
            time.sleep(_PAUSE_S)
        raise TransferError(
            f"{public_name(self._place)}: the replies could not be sent ({trouble}); they are kept in {self.path}"
        )

    def _send(self) -> tuple[str | None, bool]:
        """What went wrong, if anything, and whether it may pass."""
        try:
            with self.path.open("rb") as file:
                status = httpx.put(self._place, content=file, timeout=_TIMEOUT_S).status_code
        except httpx.InvalidURL as error:
            return _why(error), False
        except httpx.HTTPError as error:
            return _why(error), True
        if 200 <= status < 300:
            return None, False
        return f"HTTP {status}", status >= 500 or status in _PASSING


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
