"""`emovllm discover`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from emovllm.errors import DiscoveryError, EmovllmError

DESCRIPTION = """Find the neurons and heads with which a model expresses each emotion, and write them as a circuit that
`emovllm serve` can use."""

# Options that are fields of `Parameters` by the same name.
_PARAMETERS = (
    "neuron_share",
    "scope",
    "importance",
    "importance_prompts",
    "head_metric",
    "least_neurons",
    "least_heads",
    "cap",
    "directions",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `discover` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("model", nargs="?", default="default", help="folder or Hugging Face id (default: the default model)")
    add("--data", metavar="FILE", help="sev-small (40 scenarios, the default), sev, sev-test (160 each), or a file")
    add("--out", metavar="DIR", required=True, help="folder to write the circuit to")
    add(
        "--style",
        action="append",
        metavar="NAME|FILE",
        help="paper, role, replies, fewshot (default) or a JSON file: the elicitation; repeatable",
    )
    add("--budget", type=float, metavar="N", help="units per sublayer on average (default: 10)")
    add("--neuron-share", type=float, metavar="X", help="the neurons' share of the budget (default: 0.7)")
    add(
        "--recommended",
        action="append",
        default=[],
        type=_strength,
        metavar="[EMOTION=]X",
        help="lambda that strength 1 stands for, of one emotion or all (default: 1)",
    )
    add(
        "--maximal",
        action="append",
        default=[],
        type=_strength,
        metavar="[EMOTION=]X",
        help="largest lambda a request may reach (default: twice the recommended)",
    )
    add("--scope", choices=("generation", "prompt_last", "all"), help="positions (default: generation)")
    add("--importance-prompts", type=int, metavar="N", help="neutral prompts for importance (default: 8)")
    add("--limit", type=int, metavar="N", help="use only the first N scenarios")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", default="cpu", help="torch device (default: cpu)")
    add("--batch-size", type=int, default=32, metavar="N", help="sequences per forward (default: 32)")
    add("--seed", type=int, default=0, help="chooses the neutral prompts (default: 0)")
    add("--importance", choices=("exact", "gradient"), help="perturbation, or one backward pass (default: exact)")
    add("--head-metric", choices=("residual", "normed"), help="state that heads are scored on (default: residual)")
    add(
        "--band",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="relative depths of the reference layers (default: 0.75 0.9)",
    )
    add("--least-neurons", type=int, metavar="N", help="neurons that every layer gets (default: 4)")
    add("--least-heads", type=int, metavar="N", help="heads that every layer gets (default: 2)")
    add("--cap", type=float, metavar="X", help="most of a kind's budget beyond that for one layer (default: 0.4)")
    add(
        "--no-directions",
        dest="directions",
        action="store_const",
        const=False,
        help="leave out the directions, which only the steering baseline of evaluations needs",
    )
    add("--replies", metavar="DIR", help="use only what `emovllm elicit` found accepted in every emotion")
    add("--work", metavar="DIR", help="folder for what was measured; an interrupted run goes on (default: OUT.work)")
    add(
        "--stage",
        choices=("activations", "heads", "importance", "circuit"),
        help="stop after this stage; `circuit` only assembles what was measured",
    )
    add("--fresh", action="store_true", help="forget what was measured before")


def main(args: argparse.Namespace) -> int:
    """Runs `discover`; returns the exit status."""
    from emovllm_offline.data.styles import DEFAULT_STYLES
    from emovllm_offline.discovery import discover
    from emovllm_offline.storage.places import work_folder

    given = {
        "per_sublayer": args.budget,
        "band": None if args.band is None else tuple(args.band),
        **{name: getattr(args, name) for name in _PARAMETERS},
    }
    try:
        for name in ("budget", "importance_prompts", "limit", "batch_size"):
            if (value := getattr(args, name)) is not None and not value > 0:
                raise DiscoveryError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        if args.neuron_share is not None and not 0 <= args.neuron_share <= 1:
            raise DiscoveryError(f"--neuron-share must be between 0 and 1, got {args.neuron_share}")
        circuit = discover.run(
            args.model,
            args.data,
            args.out,
            args.style or DEFAULT_STYLES,
            parameters=discover.Parameters(**{name: value for name, value in given.items() if value is not None}),
            dtype=args.dtype,
            device=args.device,
            batch_size=args.batch_size,
            seed=args.seed,
            limit=args.limit,
            recommended=dict(args.recommended),
            maximal=dict(args.maximal),
            work=args.work,
            replies=args.replies,
            stage=args.stage,
            fresh=args.fresh,
            command=_command(args),
        )
    except (EmovllmError, OSError) as error:
        print(f"emovllm discover: {error}", file=sys.stderr)
        return 1
    if circuit is None:
        print(f"{args.work or work_folder(args.out)}: {args.stage} done")
        return 0
    neurons = sum(map(len, circuit.neurons.values())) // len(circuit.names)
    heads = sum(map(len, circuit.heads.values())) // len(circuit.names)
    print(f"{args.out}: {', '.join(circuit.names)}; about {neurons} neurons and {heads} heads each")
    return 0


def _strength(text: str) -> tuple[str, float]:
    emotion, _, value = text.rpartition("=")
    try:
        return emotion, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or EMOTION=NUMBER, got {text!r}") from None


def _command(args: argparse.Namespace) -> str:
    """The command that made a circuit, with the names of files but not their places."""
    words = ["emovllm", "discover", Path(args.model).name if Path(args.model).is_dir() else args.model]
    for name in (
        "data",
        "style",
        "budget",
        "recommended",
        "maximal",
        *_PARAMETERS,
        "band",
        "replies",
        "limit",
        "dtype",
        "batch_size",
        "seed",
    ):
        value = getattr(args, name)
        if name == "band" and value is not None:
            words += ["--band", *(f"{depth:g}" for depth in value)]
            continue
        for one in value if isinstance(value, list) else [value]:
            if one is None or (name, one) in {("dtype", "float32"), ("batch_size", 32), ("seed", 0)}:
                continue
            if name == "directions":
                words.append("--no-directions")
                continue
            if isinstance(one, tuple):
                one = f"{one[0]}={one[1]:g}" if one[0] else f"{one[1]:g}"
            elif name in ("data", "style", "replies"):
                one = Path(one).name
            words += [f"--{name.replace('_', '-')}", f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(words)
