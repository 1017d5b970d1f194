"""How fast a model is, by a clock that others' work disturbs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from emovllm_offline.building import speed
from emovllm_offline.building.costs import BATCH
from emovllm_offline.judges.judge import Verdict
from emovllm_offline.judges.panel import PanelJudge


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


class Slow:
    """A judge that takes so long a text, and longer for its first."""

    config: ClassVar[dict[str, str]] = {}

    def __init__(self, clock: Clock, seconds: float, loading: float, name: str = "slow") -> None:
        self.name, self.clock, self.seconds, self.loading = name, clock, seconds, loading
        self.asked: list[int] = []

    def judge(self, texts: Sequence[str], targets: Sequence[str]) -> list[Verdict]:
        self.clock.work(self.seconds * len(texts) + self.loading)
        self.loading = 0.0
        self.asked.append(len(texts))
        return [Verdict(target == "anger", "anger", "") for target in targets]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, ...]]:
    """`judged(clock, judges by name)`: how long each takes for a text."""

    def timed(clock: Clock, judges: dict[str, Any]) -> tuple[float, ...]:
        monkeypatch.setattr(speed, "time", clock)
        making = SimpleNamespace(make=lambda name, emotions, cache, concurrency: judges[name])
        settings = SimpleNamespace(judging=making, judge=tuple(judges))
        return speed.judging_seconds(SimpleNamespace(settings=settings, emotions=("anger", "fear")))  # type: ignore[arg-type]

    return timed


def test_a_judge_is_timed_without_what_it_loads_first(judged: Callable[..., tuple[float, ...]]) -> None:
    clock = Clock(itertools.repeat(1.0))
    quick, slow = Slow(clock, 0.01, 2.0), Slow(clock, 7.0, 9.0)
    assert judged(clock, {"quick": quick, "slow": slow}) == (pytest.approx(0.01), pytest.approx(7.0))
    # What is slow is asked no more than it has to be.
    assert (quick.asked, slow.asked) == ([1, len(speed.TEXTS) - 1], [1, 1])


def test_a_panel_takes_what_all_its_members_take(judged: Callable[..., tuple[float, ...]]) -> None:
    clock = Clock(itertools.repeat(1.0))
    members = [Slow(clock, seconds, 0.0, str(seconds)) for seconds in (0.5, 1.0, 7.0)]
    # Two agree on everything here, and elsewhere they may not.
    assert judged(clock, {"panel": PanelJudge(members)}) == (pytest.approx(8.5),)
