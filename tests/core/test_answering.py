"""A process that is driven by JSON lines, as those who drive it see it."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
from emovllm.answering import answer_lines

def start(place):
    print("loading", place)
    if not place:
        raise SystemExit("nowhere to begin")

    def answer(number):
        print("counting")
        return {"half": 12 / number}

    return {"place": place}, answer

answer_lines(start)
"""


def ask(begin: dict[str, str], *lines: str) -> tuple[int, list[dict[str, object]], str]:
    """How the process ended, what it answered, and what went to standard error."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(begin)]
    ended = subprocess.run(
        command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, check=False
    )
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


def test_each_line_is_answered_and_what_fails_is_told() -> None:
    status, answers, logged = ask(
        {"place": "here"}, '{"number": 2}', '{"number": 0}', '{"name": 1}', "no", '{"number": 3}'
    )
    assert status == 0
    assert [answers[at] for at in (0, 1, 5)] == [{"place": "here"}, {"half": 6}, {"half": 4}]
    assert answers[2] == {"error": "ZeroDivisionError: division by zero"}
    assert [str(answer["error"]).split(":")[0] for answer in answers[3:5]] == ["TypeError", "JSONDecodeError"]
    # Nor is what is printed taken for an answer.
    assert logged.split() == ["loading", "here", *["counting"] * 3]


def test_a_beginning_that_fails_is_told_and_ends_it() -> None:
    status, answers, _ = ask({"place": ""}, '{"number": 2}')
    assert (status, answers) == (1, [{"error": "SystemExit: nowhere to begin"}])
