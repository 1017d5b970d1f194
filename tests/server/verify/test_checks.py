"""What replies are taken for."""

from __future__ import annotations

from pathlib import Path

import pytest

from emovllm_server.verify import checks
from emovllm_server.verify.checks import Difference, Reply, Timing
from emovllm_server.verify.report import as_text
from emovllm_server.verify.run import Findings, Subject


def reply(*tokens: int, off: float = 0.0) -> Reply:
    return Reply(list(tokens), [-1.0 - 0.1 * number + off for number, _ in enumerate(tokens)])


def test_replies_are_compared_up_to_where_they_part() -> None:
    found = checks.difference([reply(1, 2, 3), reply(4, 5, 6, off=0.5)], [reply(1, 2, 3), reply(4, 9, 9)])
    assert found.equal == pytest.approx(4 / 6)
    # The second reply's first token, and that in which it parts.
    assert (found.largest, found.mean) == (pytest.approx(0.5), pytest.approx(0.2))


def test_float32_is_held_to_every_token() -> None:
    assert checks.exactness("any", [reply(1, 2)], [reply(1, 2, off=9e-4)]).passed
    assert not checks.exactness("any", [reply(1, 2)], [reply(1, 2, off=2e-3)]).passed
    assert not checks.exactness("any", [reply(1, 2)], [reply(1, 3)]).passed


@pytest.mark.parametrize(("mean", "moved", "passed"), [(0.003, 0.8, True), (0.0041, 0.8, False), (0.003, 0.003, None)])
def test_where_it_rounds_an_engine_may_be_as_far_off_as_plain_vllm(
    mean: float, moved: float, passed: bool | None
) -> None:
    verdict = checks.as_exact_as_plain("any", Difference(0.9, 0.1, mean), Difference(0.9, 0.1, 0.002), moved)
    assert verdict.passed is passed


def test_neighbours_may_differ_by_what_runs_differ_by() -> None:
    plain = [reply(1, 2)]
    assert checks.neighbours(plain, plain, plain).passed
    assert not checks.neighbours([reply(1, 2, off=0.01)], plain, plain).passed
    assert checks.neighbours([reply(1, 2, off=0.01)], plain, [reply(1, 2, off=0.006)]).passed


def test_emotions_that_move_nothing_pass_no_check() -> None:
    assert checks.emotions_move([reply(1), reply(2)], [reply(1, off=0.5), reply(3)]).passed
    assert not checks.emotions_move([reply(1), reply(2)], [reply(1), reply(3)]).passed


def test_a_shared_prefix_must_have_been_shared() -> None:
    assert checks.shared_prefix([reply(1)], [reply(1)], hits=32, shared=True).passed
    assert not checks.shared_prefix([reply(1)], [reply(1)], hits=0, shared=True).passed
    assert checks.shared_prefix([reply(1)], [reply(1)], hits=0, shared=False).passed


def test_every_rank_of_a_stage_holds_the_same_sites() -> None:
    assert checks.ranks([["mlp.0"], ["mlp.0"], ["mlp.1"], ["mlp.1"]], 2).passed
    assert not checks.ranks([["mlp.0"], []], 2).passed
    assert not checks.ranks([[]], 1).passed


def test_quantised_weights_are_as_near_as_their_bits_allow_at_every_site() -> None:
    near = checks.quantized_weights({"mlp.0": (0.02, 0.25), "attn.0": (0.1, 0.25), "mlp.1": (0.019, 0.02)})
    assert near.passed
    assert near.figures["distance_by_site"] == {"mlp.0": 0.02, "attn.0": 0.1, "mlp.1": 0.019}
    assert "3 sites are 0.019 to 0.1 from the circuit's fingerprint" in near.told
    assert "mlp.1: 0.019 (limit 0.02)" in near.told
    assert not checks.quantized_weights({"mlp.0": (0.02, 0.25), "attn.0": (0.3, 0.25)}).passed
    findings = Findings(Subject([], "", "", "auto", None), 0, Path(), {}, [near], engine={"quantization": "awq"})
    assert "  distance by site: mlp.0 0.02, attn.0 0.1, mlp.1 0.019" in as_text(findings).splitlines()


def test_the_cost_is_told_and_not_judged() -> None:
    verdict = checks.cost(Timing([0.010, 0.010], [0.010, 0.010], [0.011, 0.011]), in_turn=True)
    assert verdict.passed is None
    assert verdict.told == (
        "plain 10.00 ms; in ratio to it, idle 1.000 [1.000, 1.000], all steered 1.100 [1.100, 1.100] (2 rounds)"
    )
