"""`emovllm import-published`: its options. Heavy imports wait until it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys

from emovllm.errors import EmovllmError

DESCRIPTION = """Turn the artefacts that the paper's authors published (a checkout of their repository) into a circuit
for Llama-3.2-3B-Instruct that `emovllm serve` can use. Whatever is missing there is an error that names the file."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `import-published` to its parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("checkout", help="their repository, or the folder of one run in its outputs/")
    add("--out", metavar="DIR", required=True, help="folder to write the circuit to")
    add(
        "--model",
        metavar="MODEL",
        help="folder or Hugging Face id with the weights, by which the circuit will know "
        "its model (default: meta-llama/Llama-3.2-3B-Instruct)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `import-published`; returns the exit status."""
    from emovllm_offline.discovery.published import import_published

    try:
        circuit = import_published(args.checkout, args.out, args.model)
    except (EmovllmError, OSError) as error:
        print(f"emovllm import-published: {error}", file=sys.stderr)
        return 1
    units = sum(map(len, circuit.neurons.values())), sum(map(len, circuit.heads.values()))
    print(f"{args.out}: {', '.join(circuit.names)}; {units[0]} neurons and {units[1]} heads in all")
    return 0
