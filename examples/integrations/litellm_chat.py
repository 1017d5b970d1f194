"""An emotion by LiteLLM (pip install litellm):

python examples/integrations/litellm_chat.py [BASE_URL]
"""

from __future__ import annotations

import sys
from typing import Any

import litellm

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
MODEL = "hosted_vllm/SmolLM2-135M-Instruct"
MESSAGE = "My neighbour borrowed my bike and brought it back with a flat tyre."


def ask(model: str, **fields: Any) -> Any:
    """A reply, or a stream of one."""
    messages = [{"role": "user", "content": MESSAGE}]
    common: dict[str, Any] = {"api_base": URL, "api_key": "none", "temperature": 0, "max_tokens": 24}
    return litellm.completion(model=model, messages=messages, **common, **fields)


anger: dict[str, Any] = {"extra_body": {"emotion": "anger"}}
print("plain:", repr(ask(MODEL).choices[0].message.content))
reply = ask(MODEL, **anger)
print("field:", repr(reply.choices[0].message.content))
print("name:", repr(ask(f"{MODEL}:anger").choices[0].message.content))
chunks = ask(MODEL, stream=True, **anger)
print("stream:", repr("".join(chunk.choices[0].delta.content or "" for chunk in chunks)))
# A router's deployment may have the emotion among its parameters, so that clients ask for a name alone.
fixed = {"model": MODEL, "api_base": URL, "api_key": "none", **anger}
router = litellm.Router(model_list=[{"model_name": "angry", "litellm_params": fixed}])
routed = router.completion(model="angry", messages=[{"role": "user", "content": MESSAGE}], temperature=0, max_tokens=24)
print("router:", repr(routed.choices[0].message.content))
print(
    "applied:",
    getattr(reply, "emotion", None),
    reply._hidden_params["additional_headers"].get("llm_provider-x-emotion"),
)
