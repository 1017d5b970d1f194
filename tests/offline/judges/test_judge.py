"""A judge is one file and a decorator: how commands come to know it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from emovllm.errors import JudgeError
from emovllm_offline.judges import judge as judges
from emovllm_offline.judges.judge import Verdict, judge, judge_kinds, judge_names, make_judge, option_fields

PACKAGED = ["hf", "lexicon", "llm", "local", "openai", "openai-blind", "panel"]
MODULE = """
from dataclasses import dataclass
from emovllm_offline.judges.judge import Verdict, judge, option

class Constant:
    name = "constant"
    def __init__(self, emotions, word):
        self.config = {"word": word}
    def judge(self, texts, targets):
        return [Verdict(self.config["word"] in text, None, "") for text in texts]

@dataclass(frozen=True, slots=True)
class Options:
    word: str = option("yes", "the word that it looks for", metavar="WORD")

@judge("constant", "looks for one word", Options)
def make(emotions, options):
    return Constant(emotions, options.word)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_names()
    monkeypatch.setattr(judges, "_KINDS", dict(judges._KINDS))


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a distribution that brings the judge of `MODULE`."""
    (tmp_path / "judge_of_theirs.py").write_text(MODULE)
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[emovllm.judges]\nconstant = judge_of_theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("judge_of_theirs", None)


def test_every_packaged_judge_is_known_with_a_few_words_on_it() -> None:
    assert judge_names() == PACKAGED
    assert all(kind.about for kind in judge_kinds())


def test_options_that_judges_share_are_told_once() -> None:
    flags = [field.flag for field in option_fields()]
    assert sorted(filter(None, flags)) == [
        "--judge-base-url",
        "--judge-device",
        "--judge-labels",
        "--judge-model",
        "--judge-panel",
        "--lexicon",
    ]
    assert [field.name for field in option_fields() if field.flag is None] == ["concurrency"]


def test_judges_take_their_own_options_and_leave_those_of_others() -> None:
    made = make_judge("openai", ["anger"], model="m", base_url=None, lexicon="words.json", concurrency=3)
    assert made.config["model"] == "m"
    with pytest.raises(TypeError, match="no judge has an option modle"):
        make_judge("openai", ["anger"], modle="m")


def test_telling_of_judges_imports_neither_models_nor_clients() -> None:
    code = (
        "import sys; from emovllm_offline.judges.judge import option_fields; assert option_fields(); "
        "print([name for name in ('torch', 'transformers', 'openai', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_distribution_brings_a_judge_with_its_options(distribution: Path) -> None:
    assert judge_names() == [*PACKAGED, "constant"]
    judge = make_judge("constant", ["anger"], word="no", cache=distribution / "cache.jsonl")
    assert judge.judge(["no way", "yes"], ["anger"] * 2) == [Verdict(True, None, ""), Verdict(False, None, "")]
    assert make_judge("constant", ["anger"]).judge(["yes"], ["anger"])[0].match


def test_commands_have_the_options_of_another_distributions_judge(distribution: Path) -> None:
    code = """
from emovllm.cli import app
from emovllm.options import published_command
words = "evaluate --judge constant,lexicon --judge-word no --judge-labels Joy=happiness"
_, bound, _ = app().parse_args(words)
options = bound.arguments["options"]
judge = options.judging.make("constant", ["anger"], None, 1)
print(published_command("evaluate", options), judge.config)
"""
    environment = {**os.environ, "PYTHONPATH": str(distribution)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines() == [
        "emovllm evaluate --judge constant,lexicon --judge-labels joy=happiness --judge-word no {'word': 'no'}"
    ], done.stderr


def test_a_distribution_that_cannot_be_imported_is_told_where_its_judge_is_asked_for(distribution: Path) -> None:
    (distribution / "judge_of_theirs.py").write_text("import nothing_of_this_name")
    assert [kind.name for kind in judge_kinds()] == PACKAGED
    assert make_judge("lexicon", ["anger"]).name == "lexicon"
    with pytest.raises(JudgeError, match=r"'constant' of judge_of_theirs cannot be imported: .*nothing_of_this_name"):
        make_judge("constant", ["anger"])


def test_an_entry_point_bears_its_judges_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("other", "emovllm_offline.judges.lexicon", judges.GROUP)
    monkeypatch.setattr(judges, "entry_points", lambda group: [point] if group == judges.GROUP else [])
    with pytest.raises(JudgeError, match="registers no judge 'other'"):
        make_judge("other", ["anger"])


def test_two_judges_of_one_name_are_refused() -> None:
    with pytest.raises(JudgeError, match="two judges are called 'lexicon'"):
        judge("lexicon", "another")(lambda emotions, options: make_judge("local", emotions))
