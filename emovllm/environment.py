"""What commands take from the environment, and what they hand on in it."""

from __future__ import annotations

import os

# The key of the routes that load and unload circuits. In the environment, for vLLM logs its arguments.
ADMIN_KEY = "EMOVLLM_ADMIN_KEY"
# This machine by the names that urllib and HTTPX both know in NO_PROXY.
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def without_admin_key() -> dict[str, str]:
    """The environment of a server that a command starts for itself: nobody loads circuits there, and a key that was
    exported for another server would have it ask for --circuit-root."""
    return {name: value for name, value in os.environ.items() if name != ADMIN_KEY}


def reach_loopback_directly() -> None:
    """Has this process and those that it starts reach this machine's own servers without a proxy.

    Python's clients ask the proxy of $http_proxy for loopback addresses too, where $no_proxy does not name them.
    """
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _LOOPBACK if host not in hosts]
    # Some programs read the one spelling, some the other.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
