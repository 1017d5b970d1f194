"""What commands take from the environment, and what they hand on in it."""

from __future__ import annotations

import os

# The key of the routes that load and unload circuits. In the environment, for vLLM logs its arguments.
ADMIN_KEY = "EMOVLLM_ADMIN_KEY"


def without_admin_key() -> dict[str, str]:
    """The environment of a server that a command starts for itself: nobody loads circuits there, and a key that was
    exported for another server would have it ask for --circuit-root."""
    return {name: value for name, value in os.environ.items() if name != ADMIN_KEY}
