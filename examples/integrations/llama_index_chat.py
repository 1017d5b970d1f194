"""An emotion by LlamaIndex (pip install llama-index-llms-openai-like):

python examples/integrations/llama_index_chat.py [BASE_URL]
"""

from __future__ import annotations

import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
MODEL = "SmolLM2-135M-Instruct"
MESSAGE = [ChatMessage(role="user", content="My neighbour borrowed my bike and brought it back with a flat tyre.")]
common: dict[str, Any] = {"api_base": URL, "api_key": "none", "is_chat_model": True, "temperature": 0, "max_tokens": 24}

plain = OpenAILike(model=MODEL, **common)
angry = OpenAILike(model=MODEL, additional_kwargs={"extra_body": {"emotion": "anger"}}, **common)
print("plain:", repr(plain.chat(MESSAGE).message.content))
reply = angry.chat(MESSAGE)
print("field:", repr(reply.message.content))
print("name:", repr(OpenAILike(model=f"{MODEL}:anger", **common).chat(MESSAGE).message.content))
print("call:", repr(plain.chat(MESSAGE, extra_body={"emotion": "anger"}).message.content))
print("stream:", repr("".join(part.delta or "" for part in angry.stream_chat(MESSAGE))))
# `raw` is the reply as it came.
print("applied:", reply.raw.emotion)
