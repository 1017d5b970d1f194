"""Asks a running server for emotions, with the ordinary `openai` client.

scripts/env emovllm serve                           # in one terminal, until it says that it serves
scripts/env python examples/serve_and_ask.py        # in another one
"""

from __future__ import annotations

import argparse

from openai import BadRequestError, OpenAI

MESSAGE = "My neighbour borrowed my bike and brought it back with a flat tyre."


def emotions(client: OpenAI) -> list[str]:
    """The emotions that the server offers, which no class of the client's knows: a GET of our own route."""
    listing = client.get("/emotions", cast_to=dict[str, list[dict[str, object]]])
    return [str(card["id"]) for card in listing["data"]]


def ask(client: OpenAI, model: str, **fields: object) -> str:
    """One reply; `fields` are emotion, emotion_strength and emotion_scope."""
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": MESSAGE}],
        max_tokens=40,
        temperature=0,
        extra_body=fields,
    )
    return reply.choices[0].message.content or ""


def stream(client: OpenAI, model: str, **fields: object) -> None:
    """The same, printed as it comes."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": MESSAGE}],
        max_tokens=40,
        temperature=0,
        stream=True,
        extra_body=fields,
    )
    for chunk in chunks:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="none", help="where the server has one")
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.base_url, api_key=arguments.api_key)
    model = client.models.list().data[0].id
    names = emotions(client)
    first, last = names[0], names[-1]

    print("emotions:", ", ".join(names))
    print("plain:", ask(client, model))
    print(f"{first}:", ask(client, model, emotion=first))
    print(f"{first}, half as strong:", ask(client, model, emotion=first, emotion_strength=0.5))
    print(f"{first} and {last}:", ask(client, model, emotion={first: 0.6, last: 0.4}))
    print(f"{last}, streaming: ", end="")
    stream(client, model, emotion=last)

    # The model's name can carry the emotion, for clients that send no other fields.
    print(f"{model}:{last}:", ask(client, f"{model}:{last}"))

    try:
        ask(client, model, emotion="boredom")
    except BadRequestError as error:
        print("boredom:", error.body["message"] if isinstance(error.body, dict) else error)


if __name__ == "__main__":
    main()
