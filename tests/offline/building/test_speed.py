"""How fast a model is, by a clock that others' work disturbs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from emovllm_offline.building import speed
from emovllm_offline.building.costs import BATCH


class Clock:
    """Stands still but for what it is told; each work takes so many times what it takes undisturbed."""

    def __init__(self, slower: Iterator[float]) -> None:
        self.now, self.slower, self.works = 0.0, slower, 0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.works += 1
        self.now += seconds * next(self.slower)


class Model(NamedTuple):
    """A decoder whose forward takes so long a token."""

    clock: Clock
    token: float
    most: int = 4096
    device: torch.device = torch.device("cpu")
    layers: tuple[None, ...] = (None, None)
    hidden_size: int = 8

    def most_tokens(self, wanted: int) -> int:
        return min(wanted, self.most)

    def forward(self, ids: Tensor) -> None:
        assert ids.shape[1] <= self.most
        self.clock.work(self.token * ids.numel())

    def prefix_cache(self, ids: list[int]) -> list[int]:
        return ids

    def scores(self, ids: Tensor, cache: list[int]) -> None:
        cache.append(0)
        assert len(cache) <= self.most
        self.clock.work(self.token * ids.numel())


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[speed.Speed, Clock]]:
    def timed(token: float, slower: Iterator[float], **more: Any) -> tuple[speed.Speed, Clock]:
        clock = Clock(slower)
        monkeypatch.setattr(speed, "time", clock)
        monkeypatch.setattr(speed, "repeat_cache", lambda cache, batch: cache)
        return speed.speed_of(Model(clock, token, **more), 3.0), clock  # type: ignore[arg-type]

    return timed


@pytest.mark.parametrize("token", [0.001, 0.02])
def test_what_others_disturb_now_and_then_changes_nothing(
    of: Callable[..., tuple[speed.Speed, Clock]], token: float
) -> None:
    quiet, _ = of(token, itertools.repeat(1.0))
    assert (quiet.token, quiet.step) == (pytest.approx(token), pytest.approx(BATCH * token))
    assert (quiet.load, quiet.layers, quiet.hidden) == (3.0, 2, 8)
    disturbed, _ = of(token, itertools.cycle([3.0, 1.0, 7.0]))
    assert disturbed.token == pytest.approx(quiet.token)
    assert disturbed.step == pytest.approx(quiet.step)


def test_a_model_that_is_slow_is_timed_twice_and_no_longer(of: Callable[..., tuple[speed.Speed, Clock]]) -> None:
    found, clock = of(0.5, itertools.repeat(1.0))
    assert found.token == pytest.approx(0.5)
    assert clock.works == 2 + 2
    _, clock = of(0.001, itertools.repeat(1.0))
    assert clock.works == 3 * speed.TIMES
    assert clock.now < 3


def test_no_more_tokens_are_timed_than_the_model_takes(of: Callable[..., tuple[speed.Speed, Clock]]) -> None:
    found, _ = of(0.001, itertools.repeat(1.0), most=12)
    assert found.token == pytest.approx(0.001)
