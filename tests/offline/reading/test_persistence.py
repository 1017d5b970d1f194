from __future__ import annotations

import numpy as np
import pytest

from emovllm_offline.intervals import means_by_group, times_drawn
from emovllm_offline.reading.persistence import WINDOW, AmongOthers, Beside, half_lives, intervals, longest

MESSAGES, TOKENS, LABELS = 12, 30, 3


def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [messages, tokens, labels], labels, and which replies go on."""
    random = np.random.default_rng(1)
    read = random.dirichlet(np.ones(LABELS), (MESSAGES, TOKENS))
    label = np.arange(MESSAGES) % LABELS
    return read, label, np.arange(1, TOKENS + 1) <= random.integers(1, TOKENS, MESSAGES)[:, None]


def brute_half_life(excess: np.ndarray, begin: int) -> float:
    first = excess[begin - 1]
    if not first > 0:
        return float("nan")
    window = min(WINDOW, len(excess) - begin)
    for token in range(begin + 1, len(excess) - window + 2):
        if excess[token - 1 : token - 1 + window].mean() <= first / 2:
            return token - begin
    return float("inf")


@pytest.mark.parametrize("begin", [1, 7, TOKENS - 2])
def test_half_lives_are_those_of_the_definition(begin: int) -> None:
    excess = np.random.default_rng(2).normal(0, 1, (200, TOKENS)).cumsum(1)
    expected = [brute_half_life(one, begin) for one in excess]
    np.testing.assert_array_equal(half_lives(excess, begin), expected)
    kinds = np.array(expected)
    assert np.isnan(kinds).any()
    assert np.isinf(kinds).any()
    assert np.isfinite(kinds).any()
    assert max(kinds[np.isfinite(kinds)]) <= longest(TOKENS, begin)


def test_what_falls_at_once_has_a_half_life_of_the_tokens_until_then() -> None:
    excess = np.zeros((1, 40))
    excess[0, :15] = 1
    # Of the ten tokens from the eleventh on, five are left.
    assert half_lives(excess, 1)[0] == 10
    excess[0, 1:] = 0
    assert half_lives(excess, 1)[0] == 1
    excess[:] = 1
    assert half_lives(excess, 1)[0] == np.inf
    assert np.isinf(half_lives(excess[:, :1], 1)[0])
    assert (longest(40, 1), longest(5, 1), longest(1, 1)) == (30, 1, 0)


def test_the_control_is_what_others_read_as() -> None:
    read, label, _ = made()
    opens = label != 2
    sample = AmongOthers(read, label, opens, np.ones((MESSAGES, TOKENS), bool))
    times = np.random.default_rng(3).integers(0, 3, (4, MESSAGES)).astype(float)
    found = sample.curves(times)
    for row, weights in enumerate(times.astype(int)):
        # The resample itself, each message as often as it was drawn.
        drawn = np.repeat(np.arange(MESSAGES), weights)
        openers = [place for place in drawn if opens[place]]
        own = np.mean([read[place, :, label[place]] for place in openers], 0)
        others = [
            np.mean([read[other, :, label[place]] for other in drawn if label[other] != label[place]], 0)
            for place in openers
        ]
        np.testing.assert_allclose(found.own[row], own)
        np.testing.assert_allclose(found.control[row], np.mean(others, 0))
    np.testing.assert_array_equal(sample.values, [read[i, :, label[i]] for i in range(MESSAGES) if opens[i]])
    one = sample.curves(np.ones((1, MESSAGES)), [1])
    np.testing.assert_allclose(one.own[0], read[label == 1, :, 1].mean(0))
    np.testing.assert_allclose(one.control[0], read[label != 1, :, 1].mean(0))


def test_those_that_have_not_ended_are_compared_with_those_that_have_not() -> None:
    read, label, going = made()
    opens = label != 2
    sample = AmongOthers(read, label, opens, going)
    for token in (1, 9, 20):
        on = going[:, token - 1]
        openers = np.flatnonzero(opens & on)
        own = [read[i, token - 1, label[i]] for i in openers]
        controls = [read[on & (label != label[i]), token - 1, label[i]].mean() for i in openers]
        assert sample.going(token) == pytest.approx((len(openers), np.mean(own), np.mean(controls)))
    assert sample.going(TOKENS) is None


def test_a_circuits_replies_are_compared_with_the_plain_ones_message_by_message() -> None:
    read, label, going = made()
    plain = np.random.default_rng(4).random((MESSAGES, TOKENS))
    asked = read[:, :, 0]
    groups = [str(i // 2) for i in range(MESSAGES)]
    sample = Beside(asked, plain, label, going)
    found = intervals(sample, times_drawn(groups, 5), 1)
    for told, values in ((found.own, asked), (found.control, plain), (found.excess, asked - plain)):
        np.testing.assert_allclose(told, np.stack(means_by_group(values, groups, 5)))
    of = label == 1
    np.testing.assert_allclose(sample.curves(np.ones((1, MESSAGES)), [1]).excess[0], (asked - plain)[of].mean(0))
    on = going[:, 4]
    assert sample.going(5) == pytest.approx((on.sum(), asked[on, 4].mean(), plain[on, 4].mean()))


def test_the_half_life_has_the_interval_of_its_resamples() -> None:
    random = np.random.default_rng(6)
    decay = 0.5 ** (np.arange(100) / 20)
    asked = 0.1 + 0.6 * decay + random.normal(0, 0.05, (40, 100))
    plain = np.full((40, 100), 0.1)
    groups = [str(i) for i in range(40)]
    sample = Beside(asked, plain, np.zeros(40, int), np.ones((40, 100), bool))
    times = times_drawn(groups)
    value, low, high = intervals(sample, times, 1).half_life
    # The window looks ahead by half its length.
    assert value == pytest.approx(20 - WINDOW / 2, abs=3)
    assert low <= value <= high
    lives = sorted(brute_half_life(times[i] @ (asked - plain) / times[i].sum(), 1) for i in range(len(times)))
    assert (low, high) == (lives[round(0.025 * len(lives)) - 1], lives[round(0.975 * len(lives)) - 1])
