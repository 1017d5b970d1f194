"""One reading of a server's `/metrics`."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException

from emovllm.errors import ScrapeError

_MAX_BYTES = 64 * 2**20

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """Samples by name and labels, as the server wrote them; `at` is this machine's monotonic clock, in seconds."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def series(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """The labels and the value of each series."""
        for labels, value in self.samples.get(name, {}).items():
            yield dict(labels), value

    def total(self, name: str, **where: str) -> float:
        """The sum over the series with these labels; 0 where there is none."""
        return sum(value for labels, value in self.series(name) if where.items() <= labels.items())

    def values(self, name: str, label: str) -> list[str]:
        """All values of a label, in order."""
        return sorted({labels[label] for labels, _ in self.series(name) if label in labels})

    def buckets(self, name: str, **where: str) -> dict[float, float]:
        """A histogram's cumulative counts by upper bound, ascending, summed over the series with these labels."""
        counts: dict[float, float] = {}
        for labels, value in self.series(f"{name}_bucket"):
            if where.items() <= labels.items():
                bound = float(labels["le"])
                counts[bound] = counts.get(bound, 0.0) + value
        return dict(sorted(counts.items()))


def address(url: str) -> str:
    """Where the metrics are, of a server given as HOST:PORT or as a URL, with or without `/v1` or `/metrics`."""
    base = url if "://" in url else f"http://{url}"
    base = base.rstrip("/").removesuffix("/metrics").removesuffix("/v1")
    return f"{base}/metrics"


def scrape(url: str, timeout: float = 5.0) -> Scrape:
    """Reads the metrics at `url` (see `address`). Raises: ScrapeError."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            text = reply.read(_MAX_BYTES).decode()
    except urllib.error.HTTPError as error:
        raise ScrapeError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ScrapeError(f"{url}: no server answers there ({reason})") from None
    found = parse(text)
    if "emovllm_build_info" not in found.samples:
        raise ScrapeError(f"{url}: has no metrics of emovllm; is this a server of `emovllm serve`?")
    return found


def parse(text: str) -> Scrape:
    """Raises: ScrapeError, where it is not Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    except ValueError as error:
        raise ScrapeError(f"not Prometheus' text format: {str(error)[:100]}") from None
    return Scrape(time.monotonic(), samples)
