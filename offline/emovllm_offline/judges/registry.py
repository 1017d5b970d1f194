"""Judges by their names, for every command that has replies judged. Heavy imports wait until a judge is made."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emovllm.errors import JudgeError
from emovllm_offline.judges.judge import CachedJudge, Judge

# openai is told the target; the others are blind to it.
JUDGES = ("local", "hf", "openai", "openai-blind", "lexicon")


def make_judge(
    name: str,
    emotions: Sequence[str],
    *,
    model: str | None = None,
    base_url: str | None = None,
    concurrency: int = 8,
    labels: Mapping[str, str] | None = None,
    lexicon: str | Path | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
) -> Judge:
    """A judge of replies in these emotions, deterministic as far as its model is.

    Args:
        name: one of `JUDGES`.
        model: of openai and openai-blind (needed), and of hf (default: `hf_judge.DEFAULT_MODEL`).
        base_url, concurrency: of the endpoint of openai and openai-blind.
        labels: of hf: emotions by the model's names for them.
        lexicon: of lexicon: its word list.
        device: of hf and local.
        cache: file in which answers are kept by content, so that none is asked for twice; several judges may share it.

    Raises: JudgeError, EmbeddingError, EndpointError (all of them ValueError).
    """
    judge = _make(name, emotions, model, base_url, concurrency, labels, lexicon, device)
    return judge if cache is None else CachedJudge(judge, cache)


def _make(
    name: str,
    emotions: Sequence[str],
    model: str | None,
    base_url: str | None,
    concurrency: int,
    labels: Mapping[str, str] | None,
    lexicon: str | Path | None,
    device: str,
) -> Judge:
    if name == "lexicon":
        from emovllm_offline.judges.lexicon import LexiconJudge, load_lexicon

        return LexiconJudge(emotions, load_lexicon(lexicon))
    if name == "local":
        from emovllm_offline.judges.embeddings import Embedder
        from emovllm_offline.judges.local import LocalJudge

        return LocalJudge(emotions, None if device == "cpu" else Embedder(device))
    if name == "hf":
        from emovllm_offline.judges.classifier import DEFAULT_MODEL, HFJudge

        return HFJudge(emotions, model or DEFAULT_MODEL, labels=labels, device=device)
    if name not in JUDGES:
        raise JudgeError(f"there is no judge {name!r}, only {', '.join(JUDGES)}")
    from emovllm_offline.judges.endpoint import Endpoint
    from emovllm_offline.judges.openai import BlindOpenAIJudge, OpenAIJudge

    if model is None:
        raise JudgeError(f"--judge {name} needs --judge-model")
    endpoint = Endpoint(model, base_url, concurrency=concurrency)
    return OpenAIJudge(endpoint) if name == "openai" else BlindOpenAIJudge(endpoint, emotions)


def add_options(parser: argparse.ArgumentParser, default: str, several: bool = False) -> None:
    """Adds --judge and what belongs to it; `from_options` reads them; where `several`, `all_from_options`."""
    add = parser.add_argument
    kind: dict[str, Any] = {"type": _judges, "metavar": "NAME[,NAME...]"} if several else {"choices": JUDGES}
    add(
        "--judge",
        **kind,
        default=default,
        help="local (sentence embeddings), hf (a text-classification model), openai (a model that is told the "
        f"emotion), openai-blind (one that is not), lexicon (a word list); default: {default}",
    )
    add("--judge-model", metavar="M", help="the judge's model: its name at its endpoint; for hf a folder or id")
    add("--judge-base-url", metavar="URL", help="the judge's OpenAI-compatible endpoint (default: OpenAI's)")
    add("--judge-labels", type=_labels, metavar="THEIRS=OURS,...", help="emotions by the hf model's names for them")
    add("--judge-device", default="cpu", help="torch device of local and hf (default: cpu)")
    add("--lexicon", metavar="FILE", help="word list of the lexicon judge (default: the packaged one)")


def from_options(
    args: argparse.Namespace, emotions: Sequence[str], cache: str | Path | None, concurrency: int
) -> Judge:
    """The judge that the options of `add_options` name. Raises: as `make_judge`."""
    return make_judge(
        args.judge,
        emotions,
        model=args.judge_model,
        base_url=args.judge_base_url,
        concurrency=concurrency,
        labels=args.judge_labels,
        lexicon=args.lexicon,
        device=args.judge_device,
        cache=cache,
    )


def all_from_options(
    args: argparse.Namespace, emotions: Sequence[str], cache: str | Path | None, concurrency: int
) -> list[Judge]:
    """The judges that `add_options(..., several=True)` names, in their order. Raises: as `make_judge`."""
    return [
        from_options(argparse.Namespace(**{**vars(args), "judge": name}), emotions, cache, concurrency)
        for name in (_judges(args.judge) if isinstance(args.judge, str) else args.judge)
    ]


def _judges(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in names if name not in JUDGES]:
        raise argparse.ArgumentTypeError(f"no judge {', '.join(unknown)}: choose from {', '.join(JUDGES)}")
    return names


def _labels(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"expected THEIRS=OURS with commas between, got {text!r}")
    return {theirs.strip().lower(): ours.strip() for theirs, ours in pairs}
