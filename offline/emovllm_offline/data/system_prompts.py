"""System prompts that tell a model how it feels: packaged ones, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel

from emovllm.errors import DataError
from emovllm.files import read_json
from emovllm_offline.storage.places import DATA

PACKAGED = DATA / "system_prompts.json"
# What there is without one.
NONE = "none"

_Filled = Annotated[str, Field(min_length=1, pattern=r"\S")]


class _File(RootModel[Annotated[dict[_Filled, _Filled], Field(min_length=1)]]):
    pass


def load_system_prompts(given: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """By name; a prompt that has a label's name tells the model that it feels so, one of another name is a control.

    given: each a JSON file {name: prompt}, or NAME=PROMPT; where nothing is given, of the packaged ones those that
    name a label, and the packaged control. Raises: DataError, also where no prompt names a label.
    """
    prompts: dict[str, str] = {}
    for one in given or (str(PACKAGED),):
        for name, prompt in _read(one).items():
            if name in prompts:
                raise DataError(f"two system prompts are called {name!r}")
            if name == NONE:
                raise DataError(f"no system prompt can be called {NONE!r}: that is what they are compared with")
            prompts[name] = prompt
    named = [name for name in prompts if name in labels]
    if not named:
        told = "give --system" if not given else "name one after a label"
        raise DataError(f"no system prompt has the name of a label of the probe ({', '.join(labels)}): {told}")
    if given:
        return prompts
    return {name: prompt for name, prompt in prompts.items() if name in labels or name == "assistant"}


def _read(given: str) -> Mapping[str, str]:
    path = Path(given)
    name, equals, prompt = given.partition("=")
    # A prompt may be longer than a file's name can be.
    if equals and not path.name.endswith(".json"):
        if not name.strip() or not prompt.strip():
            raise DataError(f"--system {given!r}: expected NAME=PROMPT, or a JSON file {{name: prompt}}")
        return {name.strip(): prompt.strip()}
    return read_json(path, _File, DataError).root
