"""`emovllm elicit`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emovllm.errors import EmovllmError
from emovllm_offline.judges import registry

if TYPE_CHECKING:
    from emovllm_offline.model.generate import Backend

DESCRIPTION = """Bring a model to reply in each emotion, let a judge say where it did, and keep the scenarios that were
accepted in every emotion. An interrupted run is continued by the same command."""
EPILOG = """The API key is read from the environment variable OPENAI_API_KEY and sent to the endpoints that you name.
The lexicon judge counts words: it is for trying things out, not for results."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `elicit` to its parser."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        default="default",
        help="folder or Hugging Face id; with --base-url, its name there (default: the default model)",
    )
    add(
        "--data",
        metavar="FILE",
        help="sev-small (40 scenarios, the default), sev, sev-test (160 each), or a file",
    )
    add("--out", metavar="DIR", required=True, help="folder for replies.jsonl and survival.json")
    add(
        "--style",
        action="append",
        metavar="NAME|FILE",
        help="paper (default), role, replies, fewshot or a JSON file: the elicitation; repeatable",
    )
    registry.add_options(parser, default="lexicon")
    add("--base-url", metavar="URL", help="generate through this OpenAI-compatible endpoint, not in this process")
    add("--concurrency", type=int, default=8, metavar="N", help="requests at a time to an endpoint (default: 8)")
    add("--minimum", type=int, metavar="N", help="complete scenario-events below which to refuse (default: 12)")
    add("--max-new-tokens", type=int, default=100, metavar="N", help="longest reply (default: 100)")
    add("--limit", type=int, metavar="N", help="use only the first N scenarios")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--batch-size", type=int, default=16, metavar="N", help="replies generated together in process (default: 16)")


def main(args: argparse.Namespace) -> int:
    """Runs `elicit`; returns the exit status."""
    from emovllm.errors import ElicitError
    from emovllm_offline.data import sev
    from emovllm_offline.data.styles import common_emotions, load_style
    from emovllm_offline.discovery.elicit import elicit
    from emovllm_offline.discovery.survival import MINIMUM, Survival, require

    try:
        for name in ("limit", "minimum", "max_new_tokens", "batch_size", "concurrency"):
            if (value := getattr(args, name)) is not None and value < 1:
                raise ElicitError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        # What can fail quickly does so before the model is loaded.
        styles = [load_style(style) for style in args.style or ["paper"]]
        records = sev.load_sev(args.data or sev.DEFAULT)[: args.limit]
        judge = registry.from_options(args, common_emotions(styles), Path(args.out) / "judged.jsonl", args.concurrency)
        replies = elicit(
            _backend(args), records, styles, judge, args.out, max_new_tokens=args.max_new_tokens, progress=True
        )
        survival = Survival.of(replies)
        survival.save(Path(args.out) / "survival.json")
        survival.print()
        require(survival, args.minimum or MINIMUM)
    except (EmovllmError, OSError) as error:
        print(f"emovllm elicit: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {survival.complete_items} of {survival.items} scenario-events are complete")
    return 0


def _backend(args: argparse.Namespace) -> Backend:
    from emovllm.models import DEFAULT_MODEL_ID
    from emovllm_offline.model.generate import EndpointBackend, ModelBackend

    if args.base_url is not None:
        from emovllm_offline.judges.endpoint import Endpoint

        name = DEFAULT_MODEL_ID if args.model == "default" else args.model
        return EndpointBackend(Endpoint(name, args.base_url, concurrency=args.concurrency))
    from emovllm_offline.model.load import load

    loaded = load(args.model, args.dtype, args.device)
    return ModelBackend(loaded.network, loaded.tokenizer, loaded.public_id, args.batch_size)
