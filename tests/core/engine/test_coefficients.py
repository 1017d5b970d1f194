"""The position rule and the coefficient buffer, against a plain restatement of the rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emovllm.emotion import Wire
from emovllm.engine.coefficients import BatchAdapters, Coefficients, rows_for
from emovllm.schedule import Schedule
from emovllm.spec import Scope

NAMES = ("anger", "fear", "calm")


def wire(scope: Scope = "generation", **weights: float) -> Wire:
    return Wire("d", weights, scope)


class Batch:
    """Requests on their way through a scheduler: (wire, prompt length, tokens computed so far)."""

    def __init__(self, max_tokens: int = 64) -> None:
        self.coefficients = Coefficients(len(NAMES), max_tokens, torch.device("cpu"), max_requests=2)
        self.coefficients.place("d", NAMES, 0)
        self.wires: dict[str, Wire | None] = {}
        self.prompt: dict[str, int] = {}
        self.computed: dict[str, int] = {}

    def add(self, name: str, wire: Wire | None, prompt: int) -> None:
        self.wires[name], self.prompt[name], self.computed[name] = wire, prompt, 0
        self.coefficients.join(name, wire, prompt)

    def step(self, scheduled: dict[str, int]) -> np.ndarray:
        """One forward; checks the buffer row by row, and returns it."""
        names = list(scheduled)
        self.coefficients.update(
            names,
            np.array([scheduled[name] for name in names]),
            np.array([self.computed[name] for name in names]),
        )
        expected = [self._row(name, self.computed[name] + i) for name in names for i in range(scheduled[name])]
        buffer = self.coefficients.buffer.numpy()
        np.testing.assert_array_equal(buffer[: len(expected)], np.array(expected, np.float32))
        assert not buffer[len(expected) :].any()
        for name in names:
            self.computed[name] += scheduled[name]
        return buffer.copy()

    def _row(self, name: str, position: int) -> list[float]:
        asked, last = self.wires[name], self.prompt[name] - 1
        if asked is None:
            return [0.0] * len(NAMES)
        inside = {"generation": position >= last, "prompt_last": position == last, "all": True}[asked.scope]
        share = 1.0 if asked.schedule is None else float(asked.schedule.shares(np.array([position - last]))[0])
        return [asked.weights.get(emotion, 0.0) * inside * share for emotion in NAMES]


def test_each_scope_injects_its_positions() -> None:
    batch = Batch()
    batch.add("generation", wire(anger=1.5), 4)
    batch.add("prompt_last", wire("prompt_last", fear=-1.0), 3)
    batch.add("all", wire("all", calm=0.5, anger=0.25), 2)
    batch.add("plain", None, 5)
    batch.step({"generation": 4, "prompt_last": 3, "all": 2, "plain": 5})
    for _ in range(3):
        batch.step({"generation": 1, "prompt_last": 1, "all": 1, "plain": 1})


def test_a_schedule_goes_by_the_token_of_the_reply_alone() -> None:
    fading, late = Schedule(hold=2, half_life=1), Schedule(start=3, end=5)
    batch = Batch()
    batch.add("level", wire(anger=1.0), 4)
    batch.add("fading", wire(fear=0.5)._replace(schedule=fading), 3)
    batch.add("late", wire(calm=2.0)._replace(schedule=late), 2)
    batch.add("plain", None, 5)
    # Prompts in chunks, drafts of which some are rejected, and all computed anew after a preemption.
    batch.step({"fading": 2, "late": 2})
    batch.step({"level": 4, "fading": 1, "late": 1})
    reached = batch.step({"plain": 5, "level": 1, "fading": 4, "late": 4})
    np.testing.assert_array_equal(reached[6:10, 1], [0.5, 0.25, 0.125, 0.0625])
    np.testing.assert_array_equal(reached[10:14, 2], [0, 2, 2, 0])
    batch.computed["fading"] -= 2
    batch.step({"plain": 1, "level": 1, "fading": 1, "late": 1})
    batch.computed["late"] = 0
    batch.step({"late": 8, "fading": 1})
    # Whoever comes into its place has none.
    batch.coefficients.leave("fading")
    batch.add("other", wire(fear=1.0), 3)
    batch.step({"late": 1, "other": 3})
    batch.step({"late": 1, "other": 1})
    for _ in range(2):
        batch.step({"other": 1})


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7])
def test_chunks_do_not_matter(chunk: int) -> None:
    batch = Batch()
    batch.add("a", wire(anger=1.0), 7)
    batch.add("b", wire("prompt_last", fear=1.0), 9)
    left = {"a": 7, "b": 9}
    while any(left.values()):
        scheduled = {name: min(chunk, tokens) or 1 for name, tokens in left.items()}
        batch.step(scheduled)
        left = {name: max(0, left[name] - scheduled[name]) for name in left}


def test_generated_tokens_recomputed_after_preemption_are_injected_again() -> None:
    batch = Batch()
    batch.add("a", wire(anger=1.0), 4)
    batch.add("b", wire(fear=1.0), 3)
    batch.step({"a": 4, "b": 3})
    for _ in range(3):
        batch.step({"a": 1, "b": 1})
    batch.step({"a": 1})
    batch.computed["b"] = 0
    batch.step({"a": 1, "b": 4})
    batch.step({"a": 1, "b": 2})
    batch.step({"a": 1, "b": 1})


def test_drafts_of_speculative_decoding_are_injected() -> None:
    batch = Batch()
    batch.add("a", wire(anger=1.0), 4)
    batch.add("b", None, 4)
    batch.step({"a": 4, "b": 4})
    batch.step({"a": 4, "b": 3})
    batch.computed["a"] -= 2
    batch.step({"a": 3, "b": 1})


def test_a_new_request_under_an_old_name_is_not_taken_for_the_old_one() -> None:
    batch = Batch()
    batch.add("a", wire(anger=1.0), 2)
    batch.step({"a": 2})
    batch.step({"a": 1})
    batch.add("a", wire(fear=1.0), 1)
    batch.step({"a": 1})
    batch.step({"a": 1})


def test_requests_that_change_places_take_their_rows_along() -> None:
    batch = Batch()
    for name, asked in (("a", wire(anger=1.0)), ("b", None), ("c", wire(fear=1.0))):
        batch.add(name, asked, 2)
    batch.step({"a": 2, "b": 2, "c": 2})
    batch.step({"a": 1, "b": 1, "c": 1})
    batch.step({"c": 1, "b": 1})
    batch.step({"b": 1})
    batch.step({"b": 1, "a": 1})


def test_more_requests_than_expected_find_room() -> None:
    batch = Batch()
    for number, name in enumerate("abcde"):
        batch.add(name, wire(anger=float(number)), 1)
    batch.step(dict.fromkeys("abcde", 1))
    batch.coefficients.leave("b")
    batch.add("f", wire(fear=9.0), 1)
    batch.step(dict.fromkeys("acdef", 1))


def test_a_composition_known_before_is_not_taken_for_the_last_one() -> None:
    batch = Batch()
    batch.add("a", wire(anger=1.0), 1)
    batch.step({"a": 1})
    batch.coefficients.leave("a")
    batch.wires["a"] = None
    batch.step({"a": 1})
    batch.add("a", wire(anger=1.0), 1)
    batch.step({"a": 1})


def test_an_adapter_adds_its_own_columns() -> None:
    coefficients = Coefficients(len(NAMES), 8, torch.device("cpu"), max_requests=4, adapters=2)
    coefficients.place("d", NAMES, 0)
    asked = {"a": wire(anger=1.0), "b": wire(fear=2.0), "c": None, "d": wire(calm=3.0)}
    for name, emotion in asked.items():
        coefficients.join(name, emotion, 1)
    one = np.ones(4, np.int64)
    coefficients.update(list("abcd"), one, 0 * one, BatchAdapters((11, 12), np.array([12, 0, 11, 11])))
    expected = np.zeros((8, 9), np.float32)
    expected[0, [0, 6]] = 1
    expected[1, 1] = 2
    expected[3, [2, 5]] = 3
    np.testing.assert_array_equal(coefficients.buffer.numpy(), expected)


def test_adapters_that_change_slots_under_an_unchanged_batch_take_their_columns_along() -> None:
    coefficients = Coefficients(len(NAMES), 8, torch.device("cpu"), max_requests=2, adapters=2)
    coefficients.place("d", NAMES, 0)
    coefficients.join("a", wire(anger=1.0), 1)
    for layout, column in (((11, 12), 3), ((12, 11), 6), ((None, 11), 6), ((11, 13), 3)):
        coefficients.update(["a"], np.array([1]), np.array([4]), BatchAdapters(layout, np.array([11])))
        assert coefficients.buffer[0].nonzero().flatten().tolist() == [0, column], layout


def test_a_made_up_batch_may_name_adapters_that_are_gone() -> None:
    coefficients = Coefficients(len(NAMES), 8, torch.device("cpu"), max_requests=2, adapters=2)
    coefficients.place("d", NAMES, 0)
    coefficients.join("a", wire(anger=1.0), 1)
    coefficients.update(["dummy"], np.array([1]), np.array([0]), BatchAdapters((1, 2), np.array([17])))
    assert not coefficients.buffer.any()


def test_circuits_have_columns_side_by_side() -> None:
    coefficients = Coefficients(5, 8, torch.device("cpu"), max_requests=4)
    coefficients.place("d", NAMES, 2)
    coefficients.place("other", ("anger", "joy"), 0)
    coefficients.join("a", wire(anger=1.0, calm=2.0), 1)
    coefficients.join("b", wire(anger=3.0)._replace(circuit="other"), 1)
    one = np.ones(2, np.int64)
    coefficients.update(["a", "b"], one, 0 * one)
    np.testing.assert_array_equal(coefficients.buffer.numpy()[:2], [[0, 0, 1, 0, 2], [3, 0, 0, 0, 0]])
    coefficients.displace("other")
    with pytest.raises(KeyError):
        coefficients.join("c", wire(anger=3.0)._replace(circuit="other"), 1)


def test_nothing_is_written_while_nothing_changes() -> None:
    batch = Batch()
    batch.add("a", wire(anger=1.0), 2)
    batch.step({"a": 2})
    batch.step({"a": 1})
    batch.coefficients.buffer[0, 2] = 7  # a mark that any write would clear
    with pytest.raises(AssertionError):
        batch.step({"a": 1})
    assert batch.coefficients.buffer[0, 2] == 7


def test_no_coefficient_is_left_when_the_last_steered_request_ends() -> None:
    batch = Batch()
    batch.add("a", wire("all", anger=1.0), 20)
    batch.add("b", None, 3)
    batch.step({"a": 20, "b": 3})
    assert batch.step({"b": 1}).any() == 0
    assert not batch.coefficients.buffer.any()


def test_steering_has_columns_of_its_own_behind_those_of_adapters() -> None:
    coefficients = Coefficients(3, 8, torch.device("cpu"), max_requests=4, adapters=1, steering=True)
    coefficients.place("d", NAMES, 0)
    coefficients.join("circuit", wire(anger=1.0), 1)
    coefficients.join("steered", wire(fear=2.0)._replace(method="steering"), 1)
    adapters = BatchAdapters((11,), np.array([11, 11]))
    coefficients.update(["circuit", "steered"], np.array([1, 1]), np.array([0, 0]), adapters)
    expected = np.zeros((8, 9), np.float32)
    expected[0, [0, 3]] = 1.0  # the circuit, and through the adapter
    expected[1, 7] = 2.0  # an adapter changes nothing in the residual stream
    np.testing.assert_array_equal(coefficients.buffer.numpy(), expected)
    # The slot is used again by the other method.
    coefficients.leave("steered")
    coefficients.join("again", wire(fear=0.5), 1)
    coefficients.update(["again"], np.array([1]), np.array([0]), BatchAdapters((11,), np.array([0])))
    assert coefficients.buffer[0].tolist() == [0, 0.5, 0, 0, 0, 0, 0, 0, 0]


def test_a_method_that_is_not_installed_is_never_taken_for_another() -> None:
    coefficients = Coefficients(3, 8, torch.device("cpu"), max_requests=4)
    coefficients.place("d", NAMES, 0)
    with pytest.raises(RuntimeError, match="no emotion method 'steering'"):
        coefficients.join("steered", wire(fear=2.0)._replace(method="steering"), 1)


@pytest.mark.parametrize(
    ("batched", "capture", "ranks", "rows"),
    [(8192, 512, 1, 8193), (256, 512, 1, 513), (8190, 512, 4, 8193), (8192, 0, 8, 8193), (30, 32, 3, 34)],
)
def test_there_is_a_row_for_each_token_of_a_padded_batch_and_one_more(
    batched: int, capture: int, ranks: int, rows: int
) -> None:
    assert rows_for(batched, capture, ranks) == rows
