"""What `emotion_prompt` puts into the system turn: the instruction of an elicitation style, for one emotion or a blend.

Needs neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from emovllm.errors import EmotionError
from emovllm.spec import CircuitSpec
from emovllm.styles import DEFAULT_STYLES, PROMPTS, Style, load_style

if TYPE_CHECKING:
    from emovllm.fields import Options


class Instruction(NamedTuple):
    """What a model is told, and the style that it is of."""

    style: str
    text: str


def instruct(options: Options, circuit: CircuitSpec) -> Instruction | None:
    """The instruction that a request asks for; None where it asks for none.

    options: resolved, so that the emotions are named as the circuit names them.
    Raises: EmotionError, where it cannot be said in words.
    """
    asked = options.emotion_prompt
    if not asked:
        return None
    if options.strength < 0 or min(options.weights.values()) < 0:
        raise _refused("emotion_prompt names what is to be felt, and has no words for a negative strength")
    emotions = by_weight(options.weights)
    if not emotions:
        raise _refused("emotion_prompt needs an emotion of a weight above 0")
    style = _style(discovered_with(circuit) if asked is True else asked)
    if missing := [name for name in emotions if name not in style.emotions]:
        having = [name for name in PROMPTS if set(emotions) <= set(_style(name).emotions)]
        told = f"; these have all of this request: {', '.join(having)}" if having else ", nor has any other all of them"
        raise _refused(f"the style {style.name} has no instruction for {', '.join(missing)}{told}")
    return Instruction(style.name, instruction(style, emotions))


def by_weight(weights: Mapping[str, float]) -> list[str]:
    """The emotions of a blend, the strongest first, alike ones in their order; without those of weight 0."""
    return sorted((name for name, weight in weights.items() if weight > 0), key=lambda name: -weights[name])


def instruction(style: Style, emotions: Sequence[str]) -> str:
    """What the style tells a model that is to reply in the first emotion, and in the others beside it."""
    first, *others = emotions
    text = style.emotions[first][0].system or ""
    if not others:
        return text
    named = others[0] if len(others) == 1 else f"{', '.join(others[:-1])} and {others[-1]}, in this order,"
    return f"{text}\nBeside {first}, let {named} be felt in the reply too."


def discovered_with(circuit: CircuitSpec) -> str:
    """The style that a circuit was discovered with, where it tells one that has instructions; otherwise the default."""
    return next(_told(circuit), DEFAULT_STYLES[0])


def _told(circuit: CircuitSpec) -> Iterator[str]:
    styles = circuit.provenance.get("styles")
    for told in styles if isinstance(styles, list) else ():
        name = told.get("name") if isinstance(told, Mapping) else None
        # A style of the user's own may have the name of a packaged one.
        if name in PROMPTS and told.get("sha256") == _style(name).digest():
            yield name


@cache
def _style(name: str) -> Style:
    return load_style(name)


def _refused(message: str) -> EmotionError:
    return EmotionError("emotion_prompt", message)
