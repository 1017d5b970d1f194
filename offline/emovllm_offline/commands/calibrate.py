"""`emovllm calibrate`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emovllm.errors import EmovllmError
from emovllm_offline.commands.evaluate import add_common, add_model, check, command_line, names, numbers
from emovllm_offline.judges.registry import add_options

DESCRIPTION = """Find the strengths to serve a circuit at: sweeps lambda, and writes into the circuit, for each emotion,
the most accurate one that keeps fluency and repetition within bounds (recommended: what strength 1.0 stands for), the
largest one before replies collapse (maximal: the cap), and the scores. Writes calibration.json and frontier.png into
OUT. Refuses the test set. Interrupted, the same command goes on."""
_STRENGTHS = "0.5,0.75,1,1.25,1.5,2,2.5,3"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `calibrate` to its parser."""
    from emovllm_offline.evaluation.choice import MORE_REPETITION, MOST_FLUENCY

    parser.description = DESCRIPTION
    add = parser.add_argument
    add_model(parser)
    add(
        "--data",
        default="sev",
        metavar="FILE",
        help="sev (default), sev-small, a SEV file, or JSON lines with `user`; never the test set",
    )
    add(
        "--strengths",
        type=numbers,
        default=numbers(_STRENGTHS),
        metavar="X,...",
        help=f"lambdas to try (default: {_STRENGTHS})",
    )
    add(
        "--scopes",
        type=names,
        default=("",),
        metavar="NAME,...",
        help="generation, prompt_last, all: scopes to try too (default: the circuit's own alone)",
    )
    add(
        "--most-fluency",
        type=float,
        default=MOST_FLUENCY,
        metavar="X",
        help="median perplexity given the instruction, over the prompted reply's (default: 2)",
    )
    add(
        "--more-repetition",
        type=float,
        default=MORE_REPETITION,
        metavar="X",
        help="mean share of repeated 3-grams beyond that of prompted replies (default: 0.05)",
    )
    add_common(parser, base_url=False)
    add("--out", metavar="DIR", help="default: calibration in CIRCUIT.work")
    add_options(parser, "local")


def main(args: argparse.Namespace) -> int:
    """Runs `calibrate`; returns the exit status: 1 where an emotion could not be calibrated."""
    from emovllm_offline.data.messages import load_messages
    from emovllm_offline.data.styles import load_style
    from emovllm_offline.evaluation.calibrate import calibrate, table
    from emovllm_offline.evaluation.choice import Bounds
    from emovllm_offline.evaluation.plan import CIRCUITS, NONE, PROMPTING, Asked
    from emovllm_offline.evaluation.target import Where
    from emovllm_offline.judges.registry import from_options
    from emovllm_offline.storage.places import calibration_folder

    out = Path(args.out) if args.out else calibration_folder(args.circuit or ".")
    try:
        check(args)
        made = calibrate(
            Where(args.model, args.circuit, concurrency=args.concurrency, engine_args=tuple(args.engine_args)),
            Asked(
                load_messages(args.data, args.limit),
                load_style(args.prompt_style),
                (NONE, PROMPTING, CIRCUITS),
                args.strengths,
                args.max_tokens,
                args.scopes,
            ),
            lambda emotions: [from_options(args, emotions, out / "judged.jsonl", args.concurrency)],
            out,
            bounds=Bounds(args.most_fluency, args.more_repetition),
            seed=args.seed,
            fresh=args.fresh,
            command=command_line("calibrate"),
        )
    except (EmovllmError, OSError) as error:
        print(f"emovllm calibrate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"emovllm calibrate: interrupted; the same command goes on from {out}", file=sys.stderr)
        return 130
    table(made, args.judge).print()
    print(f"{args.circuit}: {len(made.choices) - len(made.uncalibrated)} emotions calibrated; see {out}")
    return 1 if made.uncalibrated else 0
