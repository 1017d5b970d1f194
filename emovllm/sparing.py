"""What of a reply is spared though it has an emotion: its thinking, tool calls, guided output.

By what a request asks for and by the rest of it, as far as the server can tell phases apart. Needs neither torch nor
vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from emovllm.emotion import ANSWER
from emovllm.errors import EmotionError
from emovllm.fields import Mute, Options
from emovllm.phases import Phase

# Why a server without parsers can spare nothing.
NO_PARSERS: dict[Phase, str] = {
    "thinking": "start it with --reasoning-parser",
    "tools": "start it with --enable-auto-tool-choice --tool-call-parser",
}


class Form(NamedTuple):
    """What a request asks of its reply's form: it may call tools, must call one, its output is guided by a grammar."""

    tools: bool = False
    forced: bool = False
    guided: bool = False


# Of a request of which nothing else is known.
FREE = Form()


def spare(options: Options, scope: str, form: Form, unmarked: Mapping[Phase, str]) -> tuple[Options, bool]:
    """The options with what they leave to the server, and whether nothing of the reply is to be steered.

    Args:
        scope: of the request, or of its circuit.
        unmarked: the phases that this server cannot tell, and why.
    Raises: EmotionError where what is to be spared cannot be told.
    """
    if scope == ANSWER and "thinking" in unmarked:
        message = f"emotion_scope {ANSWER} needs a server that can tell thinking: {unmarked['thinking']}"
        raise EmotionError("emotion_scope", message)
    mute = options.emotion_mute
    if mute is None:
        # A reply that is given is steered whole.
        free = not form.tools or "tools" in unmarked or scope == "prompt_last" or options.emotion_from is not None
        mute = [] if free else ["tools"]
    elif "tools" in mute and "tools" in unmarked:
        message = f"emotion_mute of tools needs a server that can tell calls: {unmarked['tools']}"
        raise EmotionError("emotion_mute", message)
    muted: list[Mute] = sorted(set(mute), reverse=True)
    plain = ("guided" in muted and form.guided) or ("tools" in muted and form.forced)
    return replace(options, emotion_mute=muted or None), plain
