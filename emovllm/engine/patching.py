"""How emovllm changes what vLLM does: functions that each name, above them, what they wrap.

    @patches("vllm.v1.engine.input_processor.InputProcessor.process_inputs")
    def resolve(process_inputs, self, *args, **kwargs): ...

A wrapper gets the function that it wraps, and then what that was called with. Declaring one changes nothing: it is put
in place by `install`, which whoever configures a circuit calls.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_MARK = "_emovllm"


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A wrapper of functions of vLLM's.

    targets: the functions, by their full names.
    imported_by: modules that hold a function of a module by its name too, where they are imported.
    """

    targets: tuple[str, ...]
    wrapper: Callable[..., Any]
    imported_by: tuple[str, ...] = ()

    def install(self, on: Any = None) -> None:
        """Puts the wrapper in place, around others of ours that are there. Idempotent.

        on: an object whose own method is wrapped, and no other's of its class, whatever class that is.
        """
        for target in self.targets:
            owner, name = (_owner(target) if on is None else on), target.rpartition(".")[2]
            original = getattr(owner, name)
            if self not in patches_of(original):
                self._replace(owner, name, original, bound=on is not None)

    def _replace(self, owner: Any, name: str, original: Callable[..., Any], bound: bool) -> None:
        wrapper = self.wrapper
        inner = (lambda _, *args, **kwargs: original(*args, **kwargs)) if bound else original

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(inner, owner, *args, **kwargs) if bound else wrapper(inner, *args, **kwargs)

        setattr(wrapped, _MARK, (*patches_of(original), self))
        static = isinstance(inspect.getattr_static(owner, name), staticmethod)
        setattr(owner, name, staticmethod(wrapped) if static else wrapped)
        for module in self.imported_by:
            if getattr(sys.modules.get(module), name, None) is original:
                setattr(sys.modules[module], name, wrapped)


PATCHES: list[Patch] = []


def patches(*targets: str, imported_by: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Patch]:
    """Declares a wrapper; the fields are those of `Patch`."""

    def declare(wrapper: Callable[..., Any]) -> Patch:
        patch = Patch(targets, wrapper, imported_by)
        PATCHES.append(patch)
        return patch

    return declare


def patches_of(function: Callable[..., Any]) -> tuple[Patch, ...]:
    """Ours that a function goes through, the innermost first."""
    return getattr(function, _MARK, ())


def _owner(target: str) -> type | ModuleType:
    path = target.split(".")[:-1]
    of_class = path[-1].lstrip("_")[0].isupper()
    module = importlib.import_module(".".join(path[:-1] if of_class else path))
    return getattr(module, path[-1]) if of_class else module
