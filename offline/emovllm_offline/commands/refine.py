"""`emovllm refine`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from emovllm.errors import EmovllmError, RefinementError

DESCRIPTION = """Fit a circuit's difference vectors to emotional replies, by gradient descent, and write the refined
circuit: the same neurons and heads, the same model. This goes beyond the paper, and the circuit's provenance says
so. Interrupted, the same command goes on."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `refine` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("model", nargs="?", default="default", help="folder or Hugging Face id (default: the default model)")
    add("--circuit", metavar="DIR", required=True, help="the circuit to start from, as `emovllm discover` wrote it")
    add("--out", metavar="DIR", required=True, help="folder to write the refined circuit to")
    add(
        "--replies",
        default="replies",
        metavar="FILE",
        help="JSON lines with `id`, `user`, `replies` by emotion (default: replies, written for this)",
    )
    add("--limit", type=int, metavar="N", help="use only the first N messages")
    add("--epochs", type=int, metavar="N", help="times that every message is learnt from (default: 4)")
    add("--batch", type=int, metavar="N", help="messages a step, each in all emotions (default: 4)")
    add("--learning-rate", type=float, metavar="X", help="of Adam, relative to the deltas' size (default: 0.1)")
    add("--start", type=float, metavar="X", help="lambda at which the discovered deltas enter (default: 1)")
    add(
        "--anchor",
        type=float,
        metavar="X",
        help="0 to 1: how much the plain model, asked for the emotion, decides, for fluency (default: 0)",
    )
    add("--anchor-style", default="fewshot", metavar="NAME|FILE", help="how it is asked (default: fewshot)")
    add(
        "--held-out",
        type=int,
        metavar="N",
        help="one message in N is not learnt from, but measures each epoch (default: 10)",
    )
    add("--seed", type=int, metavar="N", help="of the order of the messages (default: 0)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--work", metavar="DIR", help="folder of the checkpoint (default: OUT.work)")
    add("--fresh", action="store_true", help="start anew, whatever the checkpoint holds")


def main(args: argparse.Namespace) -> int:
    """Runs `refine`; returns the exit status."""
    from emovllm_offline.refinement import refine

    given = {
        name: getattr(args, name)
        for name in ("epochs", "batch", "learning_rate", "start", "anchor", "held_out", "seed")
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        for name in ("epochs", "batch", "learning_rate", "start", "held_out"):
            if name in given and not given[name] > 0:
                raise RefinementError(f"--{name.replace('_', '-')} must be above 0, got {given[name]}")
        if not 0 <= given.get("anchor", 0) <= 1:
            raise RefinementError(f"--anchor must be between 0 and 1, got {args.anchor}")
        if args.limit is not None and args.limit < 1:
            raise RefinementError(f"--limit must be above 0, got {args.limit}")
        circuit = refine.run(
            args.model,
            args.circuit,
            args.out,
            args.replies,
            training=refine.Training(**given),
            style=args.anchor_style,
            dtype=args.dtype,
            device=args.device,
            limit=args.limit,
            work=args.work,
            fresh=args.fresh,
            command=_command(args),
        )
    except KeyboardInterrupt:
        print("emovllm refine: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (EmovllmError, OSError) as error:
        print(f"emovllm refine: {error}", file=sys.stderr)
        return 1
    history = circuit.spec.provenance["refinements"][-1]["held-out loss"]
    means = [sum(row.values()) / len(row) for row in history]
    print(
        f"{args.out}: held-out replies at {means[0]:.2f} nats per token before, {min(means):.2f} after; "
        "`emovllm calibrate` finds its strengths"
    )
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command that made a circuit, with the names of files but not their places."""
    words = ["emovllm", "refine", Path(args.model).name if Path(args.model).is_dir() else args.model]
    words += ["--circuit", Path(args.circuit).name]
    for name in (
        "replies",
        "limit",
        "epochs",
        "batch",
        "learning_rate",
        "start",
        "anchor",
        "anchor_style",
        "held_out",
        "seed",
        "dtype",
    ):
        value = getattr(args, name)
        if value is not None and (name, value) not in {
            ("replies", "replies"),
            ("dtype", "float32"),
            ("anchor_style", "fewshot"),
        }:
            value = Path(value).name if name in ("replies", "anchor_style") else value
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
