"""Hooks on a model's modules, which are gone when their block is left, however it is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

# Takes what a module is given or gives, and returns what is to take its place, or None to leave it.
Change = Callable[[Tensor], Tensor | None]


class Hook(NamedTuple):
    """What `hooked` puts on a module: see `before` and `after`."""

    module: nn.Module
    call: Callable[..., Any]
    is_pre: bool


def before(module: nn.Module, change: Change, argument: str = "hidden_states") -> Hook:
    """Sees, and may replace, a module's first input; `argument`: its name, where it is passed by it."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = change(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = change(kwargs[argument])
        return None if changed is None else (args, {**kwargs, argument: changed})

    return Hook(module, hook, True)


def given(module: nn.Module, see: Callable[[tuple[Any, ...]], None]) -> Hook:
    """Sees all that a module is given, by position or by name, in the call's order."""
    return Hook(module, lambda module, args, kwargs: see((*args, *kwargs.values())), True)


def after(module: nn.Module, change: Change) -> Hook:
    """Sees, and may replace, a module's output, or the first of its outputs."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = change(first)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return Hook(module, hook, False)


@contextmanager
def hooked(hooks: Iterable[Hook]) -> Iterator[None]:
    """Puts hooks on their modules while the block runs; those of one module run in the order given."""
    with ExitStack() as stack:
        for module, call, is_pre in hooks:
            handle = (
                module.register_forward_pre_hook(call, with_kwargs=True)
                if is_pre
                else module.register_forward_hook(call)
            )
            stack.callback(handle.remove)
        yield
