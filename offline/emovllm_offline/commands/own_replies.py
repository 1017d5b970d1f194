"""`emovllm own-replies`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys

from emovllm.errors import EmovllmError, OwnRepliesError
from emovllm_offline.commands.evaluate import numbers

DESCRIPTION = """Let the model reply under a circuit, keep the replies that show the emotion and that the plain model
finds likeliest when asked for it, and write them for `emovllm refine --replies`: a circuit that learns from them writes
more as its model does. Interrupted, the same command goes on."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `own-replies` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("model", nargs="?", default="default", help="folder or Hugging Face id (default: the default model)")
    add("--circuit", metavar="DIR", required=True, help="the circuit to reply under")
    add("--out", metavar="FILE", required=True, help="JSON lines to write")
    add(
        "--replies",
        default="replies",
        metavar="FILE",
        help="the messages, with the replies to keep where none of its own is good (default: replies)",
    )
    add("--strengths", type=numbers, metavar="X,...", help="of the requests (default: 0.7,0.9)")
    add("--samples", type=int, metavar="N", help="of each message, emotion and strength (default: 2)")
    add("--temperature", type=float, metavar="X", help="of the samples (default: 0.7)")
    add("--max-tokens", type=int, metavar="N", help="longer replies are dropped (default: 60)")
    add("--prompt-style", metavar="NAME|FILE", help="how the plain model is asked for an emotion (default: fewshot)")
    add("--limit", type=int, metavar="N", help="use only the first N messages")
    add("--work", metavar="DIR", help="folder of what was sampled and chosen (default: OUT.work)")
    add("--fresh", action="store_true", help="start anew, whatever the folder holds")


def main(args: argparse.Namespace) -> int:
    """Runs `own-replies`; returns the exit status."""
    from emovllm_offline.data.styles import DEFAULT_STYLES
    from emovllm_offline.refinement import own_replies

    given = {name: getattr(args, name) for name in ("strengths", "samples", "temperature", "max_tokens")}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        for name in ("samples", "temperature", "max_tokens", "limit"):
            if (value := getattr(args, name)) is not None and not value > 0:
                raise OwnRepliesError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        counts = own_replies.run(
            args.model,
            args.circuit,
            args.out,
            args.replies,
            sampling=own_replies.Sampling(**given),
            style=args.prompt_style or DEFAULT_STYLES[0],
            limit=args.limit,
            work=args.work,
            fresh=args.fresh,
        )
    except KeyboardInterrupt:
        print("emovllm own-replies: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (EmovllmError, OSError) as error:
        print(f"emovllm own-replies: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: its own are {', '.join(f'{number} of {name}' for name, number in counts.items())}")
    return 0
