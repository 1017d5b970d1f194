"""Prints a reply token by token with what a probe reads while the model writes it, with the ordinary `openai` client.

emovllm probe train MODEL --data train.tsv --out PROBE      # once
emovllm serve MODEL --circuit CIRCUIT --probe PROBE         # in one terminal, until it says that it serves
python examples/read_while_writing.py --emotion anger       # in another one
"""

from __future__ import annotations

import argparse
from typing import Any

from openai import OpenAI

MESSAGE = "My neighbour borrowed my bike and brought it back with a flat tyre."


def first(probabilities: dict[str, float]) -> str:
    """The label that leads, and its probability."""
    label = max(probabilities, key=lambda name: probabilities[name])
    return f"{label} {probabilities[label]:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--emotion", help="by default the plain model's reply is read")
    parser.add_argument("--max-tokens", type=int, default=40)
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.base_url, api_key="none")
    labels = client.get("/emotions", cast_to=dict[str, Any])["reading"]["labels"]

    chunks = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": MESSAGE}],
        max_tokens=arguments.max_tokens,
        temperature=0,
        stream=True,
        extra_body={"emotion": arguments.emotion, "emotion_readout": "tokens"},
    )
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        readout = getattr(choice, "emotion_readout", None)
        if readout is None:
            continue
        # Several tokens may come in one chunk, and a character of several tokens with the last of them.
        reads = ", ".join(first(dict(zip(labels, token, strict=True))) for token in readout["tokens"])
        print(f"{choice.delta.content or ''!r}: {reads}")
        if choice.finish_reason is not None:
            print("the prompt:", first(readout["prompt"]))
            print("the reply:", first(readout["reply"]))


if __name__ == "__main__":
    main()
