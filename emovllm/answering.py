"""A process that another drives by JSON lines: its end of the pipes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Answer = Callable[..., dict[str, Any]]


def answer_lines(start: Callable[..., tuple[dict[str, Any], Answer]]) -> None:
    """Calls `start` with the fields of the first argument, a JSON object, and writes the first thing that it gives;
    then reads an object a line, and writes what the second thing gives for its fields. What fails is {"error": text}.

    Whatever else is written to standard output, as libraries log, goes to standard error.
    Raises: SystemExit where `start` fails.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        about, answer = start(**json.loads(sys.argv[1]))
    except (Exception, SystemExit) as error:
        replies.write(_failure(error))
        raise SystemExit(1) from error
    replies.write(json.dumps(about) + "\n")
    for line in sys.stdin:
        try:
            reply = json.dumps(answer(**json.loads(line))) + "\n"
        except Exception as error:
            reply = _failure(error)
        replies.write(reply)


def _failure(error: BaseException) -> str:
    return json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n"
