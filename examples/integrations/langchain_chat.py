"""An emotion by LangChain (pip install langchain-openai):

python examples/integrations/langchain_chat.py [BASE_URL]
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_openai import ChatOpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
MODEL = "SmolLM2-135M-Instruct"
MESSAGE = "My neighbour borrowed my bike and brought it back with a flat tyre."
common: dict[str, Any] = {"base_url": URL, "api_key": "none", "temperature": 0, "max_tokens": 24}

plain = ChatOpenAI(model=MODEL, include_response_headers=True, **common)
angry = ChatOpenAI(model=MODEL, extra_body={"emotion": "anger"}, **common)
print("plain:", repr(plain.invoke(MESSAGE).content))
print("field:", repr(angry.invoke(MESSAGE).content))
print("name:", repr(ChatOpenAI(model=f"{MODEL}:anger", **common).invoke(MESSAGE).content))
# By call: what `bind` adds goes into the request, and another emotion may follow with the next.
reply = plain.bind(extra_body={"emotion": "anger"}).invoke(MESSAGE)
print("call:", repr(reply.content))
print("stream:", repr("".join(str(chunk.content) for chunk in angry.stream(MESSAGE))))
# LangChain hands on no field of a reply that it does not know; the header tells what was applied.
print("applied:", reply.response_metadata["headers"]["x-emotion"])
