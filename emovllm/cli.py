"""The `emovllm` command: the only module that knows all three packages, each imported when its command runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from emovllm import __version__
from emovllm.environment import reach_loopback_directly
from emovllm.errors import EmovllmError

# Whose arguments are vLLM's to parse, --help included.
_OF_VLLM = {
    "serve": ("emovllm_server.serve", "serve a model with its circuit (takes every argument of vllm serve)"),
    "run-batch": (
        "emovllm_server.batch.command",
        "answer an OpenAI Batch file (and the arguments of vllm run-batch)",
    ),
}
_COMMANDS = {
    "top": ("emovllm_server.top.cli", "watch a server: rates, latencies and running requests by emotion"),
    "bench": ("emovllm_server.bench.cli", "measure what emotions cost, beside plain vLLM"),
    "elicit": ("emovllm_offline.commands.elicit", "generate and judge replies in each emotion"),
    "discover": ("emovllm_offline.commands.discover", "find a model's emotion circuit"),
    "own-replies": ("emovllm_offline.commands.own_replies", "let the model write replies for refine to learn from"),
    "refine": ("emovllm_offline.commands.refine", "fit a circuit's difference vectors to emotional replies"),
    "validate": ("emovllm_offline.commands.validate", "test a circuit's neurons and heads, beside random ones"),
    "report": ("emovllm_offline.commands.report", "draw a circuit and what was measured, as one page"),
    "calibrate": ("emovllm_offline.commands.calibrate", "find the strengths to serve a circuit at"),
    "evaluate": ("emovllm_offline.commands.evaluate", "measure how well emotions show in replies, and what that costs"),
    "judge-report": ("emovllm_offline.commands.judge_report", "measure how often the built-in judge is right"),
    "import-published": ("emovllm_offline.commands.import_circuit", "make a circuit of the published artefacts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    reach_loopback_directly()
    if argv and argv[0] in _OF_VLLM:
        return _reporting(_of_vllm, argv)
    args = _parser().parse_args(argv)
    return _reporting(args.run, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emovllm", description="Emotion circuits: found offline, served by vLLM.")
    parser.add_argument("--version", action="version", version=f"emovllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (_, told) in _OF_VLLM.items():
        commands.add_parser(name, help=told)
    for name, (module, told) in _COMMANDS.items():
        # Modules of options only: what a command needs is imported when it runs.
        options = importlib.import_module(module)
        command = commands.add_parser(name, help=told)
        options.configure(command)
        command.set_defaults(run=options.main)
    show = commands.add_parser("show", help="print a circuit as tables")
    show.add_argument("circuit", help="a circuit's folder, or a Hugging Face repository id")
    show.set_defaults(run=_show)
    return parser


def _of_vllm(argv: Sequence[str]) -> int:
    module = importlib.import_module(_OF_VLLM[argv[0]][0])
    return int(module.main(argv[1:]))


def _show(args: argparse.Namespace) -> int:
    from emovllm.show import show

    show(args.circuit)
    return 0


def _reporting(run: object, args: object) -> int:
    """Errors that are the user's to mend are told in a line, without a traceback."""

    try:
        return run(args)  # type: ignore[operator]
    except EmovllmError as error:
        print(f"emovllm: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
