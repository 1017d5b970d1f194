"""The playground: a page at `/playground` that chats with this server.

Its files are the same for every server and hold nothing of this one. Whatever the page shows it asks of `/v1/...`, with
the key that vLLM demands there.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

PATH = "/playground"
INDEX = "index.html"
_SCRIPTS = (
    *("app.js", "chat.js", "controls.js", "readout.js", "request.js", "server.js", "view.js"),
    *("vendor/preact.js", "vendor/hooks.js", "vendor/htm.js"),
)
# What is served, and as what: a path that is none of these is no file.
FILES = {
    INDEX: "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(_SCRIPTS, "text/javascript; charset=utf-8"),
    **dict.fromkeys(("vendor/NOTICE", "vendor/LICENSE-preact", "vendor/LICENSE-htm"), "text/plain; charset=utf-8"),
}
HEADERS = {
    # The page's own scripts and styles alone, and no way to turn a text into either: models write what it shows.
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # A server of another version has other files by the same names.
    "cache-control": "no-cache",
}


def attach(app: FastAPI) -> None:
    """Adds the page's routes, which answer where `app.state.emotion_playground` is true, and are 404 elsewhere."""
    app.add_api_route(PATH, _index, methods=["GET"], include_in_schema=False)
    app.add_api_route(f"{PATH}/{{name:path}}", _file, methods=["GET"], include_in_schema=False)


@functools.cache
def content(name: str) -> bytes:
    """The bytes of one of FILES."""
    return resources.files(__package__).joinpath("static", name).read_bytes()


async def _index(request: Request) -> Response:
    return await _file(request, INDEX)


async def _file(request: Request, name: str) -> Response:
    offered: Any = getattr(request.app.state, "emotion_playground", False)
    if offered and not name:
        # The page's addresses are relative, so that it works below any prefix of a proxy.
        return RedirectResponse(f"..{PATH}", headers=HEADERS)
    if not offered or name not in FILES:
        raise HTTPException(404)
    return Response(content(name), media_type=FILES[name], headers=HEADERS)
