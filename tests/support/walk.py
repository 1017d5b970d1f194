"""The commands one after the other, on a tiny model and short texts: what one leaves is what the next one takes."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel

from emovllm.cli import main
from support.models import add_tokenizer, tiny_chat_model

EMOTIONS = ("anger", "fear")
# Frames without a prompt of their own: their replies are what is judged. Every other one of fear shows none.
STYLE = {
    "name": "short",
    "description": "replies alone",
    "neutral": {"system": "Reply."},
    "emotions": {
        "anger": [{"system": "Reply.", "reply": "I am furious!"}],
        "fear": [{"system": "Reply.", "reply": "I am terrified!"}, {"system": "Reply.", "reply": "A table."}],
    },
}
ASKING = {
    "name": "asking",
    "description": "prompts that ask",
    "neutral": {"system": "Reply."},
    "emotions": {name: [{"system": f"Reply in {name}."}] for name in EMOTIONS},
}
EVENTS = {"positive": "It wins.", "neutral": "It sits.", "negative": "It falls."}


class Walk:
    """A folder with a model, its data, and what commands make of them."""

    def __init__(self, folder: Path, network: PreTrainedModel | None = None) -> None:
        """network: a tiny model, or Llama."""
        self.folder = folder
        # A token is a character.
        if network is None:
            self.model = tiny_chat_model(folder / "model", max_position_embeddings=256)
        else:
            self.model = str(folder / "model")
            network.save_pretrained(self.model)
            add_tokenizer(Path(self.model))
        scenarios = [
            {"skeleton_id": f"s{i}", "theme": "Pets", "scenario": f"My {pet} runs.", "event": EVENTS}
            for i, pet in enumerate(("dog", "cat"))
        ]
        replies = {"anger": "I am furious!", "fear": "I am terrified!"}
        examples = [{"id": str(i), "user": f"Day {i} is over.", "replies": replies} for i in range(4)]
        self.data = self._lines("sev.jsonl", scenarios)
        self.examples = self._lines("replies.jsonl", examples)
        self.messages = self._lines("messages.jsonl", [{"user": "The bus came late."}])
        texts = [{"text": f"Day {i}: {replies[name]}", "label": name} for i in range(30) for name in EMOTIONS]
        self.texts = self._lines("texts.jsonl", texts)
        self.style = self._json("short.json", STYLE)
        self.asking = self._json("asking.json", ASKING)

    def __call__(self, command: str, *words: str | Path) -> int:
        """Runs `emovllm COMMAND WORDS` in this process; returns its exit status."""
        return main([*command.split(), *map(str, words)])

    def discover(self, out: Path, *words: str | Path) -> int:
        usual = ("--data", self.data, "--style", self.style, "--importance-prompts", "2", "--out", out)
        return self("discover", self.model, *usual, *words)

    def refine(self, circuit: Path, out: Path) -> int:
        usual = ("--replies", self.examples, "--epochs", "1", "--held-out", "2")
        return self("refine", self.model, "--circuit", circuit, "--out", out, *usual)

    def _lines(self, name: str, rows: list[dict[str, object]]) -> Path:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.folder / name

    def _json(self, name: str, content: dict[str, object]) -> Path:
        (self.folder / name).write_text(json.dumps(content))
        return self.folder / name
