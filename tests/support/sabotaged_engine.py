"""The engine of `emovllm verify`, doing wrong what the file named by SABOTAGE says: `site`, `neighbour`, `graph`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emovllm.engine import worker
from emovllm.engine.coefficients import Coefficients
from emovllm_server.verify import engine_process

_told = Path(os.environ["SABOTAGE"])
_sites: list[Any] = []


def update(self: Coefficients, req_ids: Any, num_scheduled: Any, *args: Any, **kwargs: Any) -> None:
    self._req_ids = []  # compose anew: what was wrong last time is gone
    _update(self, req_ids, num_scheduled, *args, **kwargs)
    wrong = _told.read_text()
    if wrong == "neighbour":
        self.buffer[1:] += 0.1 * self.buffer[:-1].clone()
        self._staging._written = self.buffer.any(1).nonzero().flatten().numpy()
    elif wrong == "graph" and len(req_ids) == 4 and (num_scheduled == 1).all():
        self.buffer.zero_()
    for site in _sites[-1:]:
        site.layer.emotion_vectors.mul_(0) if wrong == "site" else site.layer.emotion_vectors.copy_(site.kept)


def fill(sites: list[Any], circuit: Any, first: int) -> Any:
    nearness = _fill(sites, circuit, first)
    for site in sites:
        _sites.append(Kept(site.layer))
    return nearness


class Kept:
    def __init__(self, layer: Any) -> None:
        self.layer, self.kept = layer, layer.emotion_vectors.clone()


_update, Coefficients.update = Coefficients.update, update  # type: ignore[method-assign]
_fill, worker.injection.fill = worker.injection.fill, fill

if __name__ == "__main__":
    engine_process.main()
