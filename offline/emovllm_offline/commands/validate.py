"""`emovllm validate`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emovllm.errors import EmovllmError

DESCRIPTION = """Test a circuit's neurons and heads on a model: how far an emotion's score falls when the top k of every
layer are zeroed, and how far it rises when their difference vectors are added to a neutral prompt, beside random
units."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `validate` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("circuit", help="the circuit's folder")
    add("--model", default="default", help="folder or Hugging Face id (default: the default model)")
    add("--work", metavar="DIR", help="folder of findings.safetensors, and for validation.json (default: CIRCUIT.work)")
    add("--data", metavar="FILE", help="sev-test (160 scenarios, the default), sev-small, sev, or a file")
    add(
        "--style",
        action="append",
        metavar="NAME|FILE",
        help="the elicitation, as for discover; repeatable (default: fewshot)",
    )
    add(
        "--neurons",
        type=_counts,
        metavar="K,K,...",
        help="how many neurons of every layer (default: 2,4,8,16,32,64,128,512)",
    )
    add("--heads", type=_counts, metavar="K,K,...", help="how many heads of every layer (default: 1,2,...,8,10)")
    add("--lambda", dest="scale", type=float, metavar="X", help="of enhancement (default: 1)")
    add("--seeds", type=int, metavar="N", help="random controls (default: 10)")
    add("--limit", type=int, metavar="N", help="use only the first N scenarios")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--batch-size", type=int, default=128, metavar="N", help="variants per forward (default: 128)")
    add("--fresh", action="store_true", help="forget what was validated before")


def main(args: argparse.Namespace) -> int:
    """Runs `validate`; returns the exit status."""
    from emovllm.errors import ResultsError
    from emovllm_offline.data.styles import DEFAULT_STYLES
    from emovllm_offline.storage.places import work_folder
    from emovllm_offline.validation import validate
    from emovllm_offline.validation.results import FILE, Plan

    given = {name: getattr(args, name) for name in ("neurons", "heads", "scale", "seeds")}
    work = Path(args.work) if args.work else work_folder(args.circuit)
    try:
        for name in ("limit", "batch_size"):
            if (value := getattr(args, name)) is not None and not value > 0:
                raise ResultsError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        result = validate.run(
            args.model,
            work,
            args.data,
            work,
            args.style or DEFAULT_STYLES,
            plan=Plan(**{name: value for name, value in given.items() if value is not None}),
            dtype=args.dtype,
            device=args.device,
            batch_size=args.batch_size,
            limit=args.limit,
            fresh=args.fresh,
        )
    except (EmovllmError, OSError) as error:
        print(f"emovllm validate: {error}", file=sys.stderr)
        return 1
    print(
        f"{work / FILE}: {result.scenarios} scenarios; best probe F1 {max(result.macro_f1()):.3f}; "
        f"`emovllm report {args.circuit}` draws it"
    )
    return 0


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
