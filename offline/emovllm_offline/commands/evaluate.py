"""`emovllm evaluate`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from emovllm.errors import EmovllmError
from emovllm_offline.judges.registry import add_options

DESCRIPTION = """Does a circuit steer, and at what cost? Asks a model every message by every method, under the same
greedy decoding, in one mixed batch of the real engine; has the replies judged; and measures beside accuracy what it
costs: perplexity, repetition, variety, length, relevance. Writes summary.json, summary.md, page.html and scored.jsonl.
Interrupted, the same command goes on."""
EPILOG = "API keys are read from environment variables and sent to the servers that you name, nowhere else."
_METHODS = "none,prompting,steering,circuits,circuits+prompting"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate` to its parser."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add_model(parser)
    add(
        "--data",
        default="sev-test",
        metavar="FILE",
        help="sev-test (default), sev, sev-small, a SEV file, or lines with `user` (and `id`, `valence`)",
    )
    add("--methods", type=names, default=names(_METHODS), metavar="NAME,...", help=f"default: {_METHODS}")
    add(
        "--strengths",
        type=numbers,
        default=(0.75, 1.0),
        metavar="X,...",
        help="1.0 is the recommended strength; of steering, the paper's (default: 0.75,1)",
    )
    add_common(parser)
    add("--out", default="emovllm-evaluate", metavar="DIR", help="default: emovllm-evaluate")
    add(
        "--paper-way",
        type=int,
        default=6,
        metavar="N",
        help="prompts on which the paper's way is timed, 0 for none; local models only (default: 6)",
    )
    add_options(parser, "local", several=True)


def add_model(parser: argparse.ArgumentParser) -> None:
    """What generates; shared with `calibrate`."""
    add = parser.add_argument
    add("model", nargs="?", help="folder or Hugging Face id (default: the default model); its name at --base-url")
    add("--circuit", metavar="DIR", help="a folder, or a Hugging Face repository id; its name at --base-url")


def add_common(parser: argparse.ArgumentParser, base_url: bool = True) -> None:
    """Options that `evaluate` and `calibrate` share."""
    add = parser.add_argument
    add("--limit", type=int, metavar="N", help="use only the first N scenarios (of three messages), or lines")
    add(
        "--prompt-style",
        default="paper",
        metavar="NAME|FILE",
        help="the prompts that ask for an emotion, and the neutral one (default: paper)",
    )
    add("--max-tokens", type=int, default=100, metavar="N", help="of a reply (default: 100)")
    add("--concurrency", type=int, default=64, metavar="N", help="requests at a time (default: 64)")
    add(
        "--engine-args",
        type=shlex.split,
        default=[],
        metavar="ARGS",
        help="further arguments of vllm serve, in one string, for the local engine",
    )
    add("--seed", type=int, default=0, help="of bootstrap and samples (default: 0)")
    add("--fresh", action="store_true", help="forget what --out holds")
    if base_url:
        add("--base-url", metavar="URL", help="a running emovllm server, such as http://localhost:8000/v1")
        add(
            "--api-key-variable",
            default="OPENAI_API_KEY",
            metavar="NAME",
            help="environment variable of that server's key (default: OPENAI_API_KEY)",
        )


def main(args: argparse.Namespace) -> int:
    """Runs `evaluate`; returns the exit status."""
    from emovllm_offline.data.messages import load_messages
    from emovllm_offline.data.styles import load_style
    from emovllm_offline.evaluation import tables
    from emovllm_offline.evaluation.evaluate import evaluate
    from emovllm_offline.evaluation.plan import Asked
    from emovllm_offline.evaluation.results import PAGE
    from emovllm_offline.evaluation.target import Where
    from emovllm_offline.judges.registry import all_from_options

    out = Path(args.out)
    try:
        check(args)
        cells = evaluate(
            Where(
                args.model,
                args.circuit,
                args.base_url,
                args.api_key_variable,
                args.concurrency,
                tuple(args.engine_args),
            ),
            Asked(
                load_messages(args.data, args.limit),
                load_style(args.prompt_style),
                args.methods,
                args.strengths,
                args.max_tokens,
            ),
            lambda emotions: all_from_options(args, emotions, out / "judged.jsonl", args.concurrency),
            out,
            seed=args.seed,
            paper_way_items=args.paper_way,
            fresh=args.fresh,
            command=command_line("evaluate"),
        )
    except (EmovllmError, OSError) as error:
        print(f"emovllm evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"emovllm evaluate: interrupted; the same command goes on from {out}", file=sys.stderr)
        return 130
    judges = args.judge if isinstance(args.judge, list) else args.judge.split(",")
    tables.overview(cells, judges).print()
    print(out / PAGE)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises: EvaluationError."""
    from emovllm.errors import EvaluationError

    for name in ("limit", "max_tokens", "concurrency"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise EvaluationError(f"--{name.replace('_', '-')} must be above 0, got {value}")


def names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
    if not all(0 < abs(value) < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"strengths must be finite and not 0, got {text!r}")
    return values


def command_line(command: str) -> str:
    """As it may be published: where on a machine something lies, and which server it is, is nobody's business."""
    words = ["emovllm", command]
    hidden = False
    for part in sys.argv[2:]:
        words.append("URL" if hidden else Path(part).name if part.startswith(("/", "~")) else part)
        hidden = part in ("--base-url", "--judge-base-url")
    return shlex.join(words)
