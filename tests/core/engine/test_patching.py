"""Wrappers of others' functions: declared, put in place once, several around one function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from emovllm.engine import patching
from emovllm.engine.patching import patches, patches_of


@pytest.fixture(autouse=True)
def undeclared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "PATCHES", [])


@pytest.fixture
def others() -> Iterator[Any]:
    """A module of somebody else's, and one that imported its function by name."""
    module, user = ModuleType("others_module"), ModuleType("others_user")

    class Owner:
        def method(self, value: int) -> list[Any]:
            return [value]

        @staticmethod
        def static(value: int) -> list[Any]:
            return [value]

    def function(value: int) -> list[Any]:
        return [value]

    module.Owner, module.function, user.function = Owner, function, function  # type: ignore[attr-defined]
    sys.modules.update(others_module=module, others_user=user)
    yield module
    del sys.modules["others_module"], sys.modules["others_user"]


def adding(what: str) -> Callable[..., Any]:
    return lambda original, *args: [what, *original(*args)]


def test_declaring_changes_nothing_and_installing_twice_is_installing_once(others: Any) -> None:
    patch = patches("others_module.Owner.method")(adding("a"))
    assert [patch] == patching.PATCHES
    assert others.Owner().method(1) == [1]
    for _ in range(2):
        patch.install()
    assert others.Owner().method(1) == ["a", 1]
    assert others.Owner.method.__name__ == "method"


def test_several_purposes_may_wrap_one_method(others: Any) -> None:
    first, second = (patches("others_module.Owner.method")(adding(name)) for name in "ab")
    for patch in (first, second, first, second):
        patch.install()
    assert others.Owner().method(1) == ["b", "a", 1]
    assert patches_of(others.Owner.method) == (first, second)


def test_a_static_method_stays_one(others: Any) -> None:
    patches("others_module.Owner.static")(adding("a")).install()
    assert others.Owner.static(1) == others.Owner().static(1) == ["a", 1]


def test_a_function_is_replaced_where_it_was_imported_by_name(others: Any) -> None:
    patch = patches("others_module.function", imported_by=("others_user", "never_imported"))(adding("a"))
    for _ in range(2):
        patch.install()
    assert others.function(1) == sys.modules["others_user"].function(1) == ["a", 1]


def test_one_object_alone_may_be_wrapped(others: Any) -> None:
    class Inheriting(others.Owner):  # type: ignore[misc]
        def method(self, value: int) -> list[Any]:
            return ["own", value]

    wrapped, other = Inheriting(), Inheriting()

    @patches("others_module.Owner.method")
    def patch(original: Any, self: Any, value: int) -> list[Any]:
        return [self is wrapped, *original(self, value)]

    for _ in range(2):
        patch.install(on=wrapped)
    assert wrapped.method(1) == [True, "own", 1]
    assert other.method(1) == ["own", 1]
