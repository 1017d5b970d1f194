"""A whole build on a tiny model, whose engine is a server that answers by rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from emovllm.cli import main
from emovllm_offline.building import folder
from emovllm_offline.model.generate import Generation, ModelBackend, Question
from support.evaluated import EMOTIONS, SAYS, answer
from support.models import tiny_chat_model
from support.walk import ASKING, EVENTS

REPLIES = {"anger": "I am furious!", "fear": "I am terrified!"}


class Place:
    """A folder with a model and what is given to a build of it."""

    def __init__(self, folder: Path) -> None:
        self.out, self.work = folder / "built", folder / "built.work"
        self.model = tiny_chat_model(folder / "model", max_position_embeddings=256)
        scenarios = [
            {"skeleton_id": f"s{i}", "theme": "Pets", "scenario": f"Dog {i} runs.", "event": EVENTS} for i in range(15)
        ]
        self.data = lines(folder / "mine.jsonl", scenarios)
        examples = [{"id": str(i), "user": f"Day {i} is over.", "replies": REPLIES} for i in range(24)]
        self.replies = lines(folder / "replies.jsonl", examples)
        self.style = folder / "asking.json"
        self.style.write_text(json.dumps(ASKING))

    def __call__(self, *words: str | Path) -> int:
        return self.default("--effort", "quick", *words)

    def default(self, *words: str | Path) -> int:
        """With no effort given."""
        usual = ("--data", self.data, "--replies", self.replies, "--emotions", self.style, "--judge", "lexicon")
        return main(["build", *map(str, (self.model, "--out", self.out, *usual, *words))])

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.work / "build.json").read_text()))

    def done(self) -> list[str]:
        return [name for name, of in self.state()["stages"].items() if of["done"]]

    def notes(self, stage: str) -> str:
        return "; ".join(self.state()["stages"][stage]["notes"])


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_fear(asked: dict[str, Any]) -> bytes:
    """Answers plainly where fear is to be injected."""
    return answer({**asked, "emotion": "none"} if asked.get("emotion") == "fear" else asked)


def obeying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model replies in the emotion that it is asked for."""

    def generate(self: ModelBackend, questions: Sequence[Question], most: int) -> list[Generation]:
        names = [next(name for name in EMOTIONS if name in str(question.frame.system)) for question in questions]
        return [Generation(SAYS[name], "stop") for name in names]

    monkeypatch.setattr(ModelBackend, "generate", generate)


def counting(monkeypatch: pytest.MonkeyPatch, stop: set[str]) -> list[str]:
    """What commands are run; each of `stop` is interrupted once as it begins."""
    ran: list[str] = []

    def counted(name: str, command: Any) -> Any:
        def call(options: Any) -> Any:
            ran.append(name)
            if name in stop:
                stop.discard(name)
                raise KeyboardInterrupt
            return command(options)

        return call

    monkeypatch.setattr(folder, "COMMANDS", {name: counted(name, of) for name, of in folder.COMMANDS.items()})
    return ran
