"""The `emovllm` command: the only module that knows all three packages, each imported when its command runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, ValidationError

from emovllm import __version__
from emovllm.environment import reach_loopback_directly
from emovllm.errors import EmovllmError
from emovllm.options import FLAT, Options, out_of_range

# Whose arguments are vLLM's to parse, --help included.
_OF_VLLM = {
    "serve": ("emovllm_server.serve", "serve a model with its circuit (takes every argument of vllm serve)"),
    "run-batch": (
        "emovllm_server.batch.command",
        "answer an OpenAI Batch file (and the arguments of vllm run-batch)",
    ),
    "verify": (
        "emovllm_server.verify.command",
        "check an engine on this machine (takes every argument of vllm serve)",
    ),
}
_COMMANDS = {
    "models": ("emovllm.known_models", "which models are known, and what can be done with one"),
    "top": ("emovllm_server.top.cli", "watch a server: rates, latencies and running requests by emotion"),
    "bench": ("emovllm_server.bench.cli", "measure what emotions cost, beside plain vLLM"),
    "build": ("emovllm_offline.commands.build", "build a model's circuit in one go, within a given time"),
    "elicit": ("emovllm_offline.commands.elicit", "generate and judge replies in each emotion"),
    "discover": ("emovllm_offline.commands.discover", "find a model's emotion circuit"),
    "own-replies": ("emovllm_offline.commands.own_replies", "let the model write replies for refine to learn from"),
    "refine": ("emovllm_offline.commands.refine", "fit a circuit's difference vectors to emotional replies"),
    "validate": ("emovllm_offline.commands.validate", "test a circuit's neurons and heads, beside random ones"),
    "report": ("emovllm_offline.commands.report", "draw a circuit and what was measured, as one page"),
    "calibrate": ("emovllm_offline.commands.calibrate", "find the strengths to serve a circuit at"),
    "evaluate": ("emovllm_offline.commands.evaluate", "measure how well emotions show in replies, and what that costs"),
    "side-effects": (
        "emovllm_offline.commands.side_effects",
        "measure what emotions cost: sums, facts, formats, refusals",
    ),
    "judge-report": ("emovllm_offline.commands.judge_report", "measure how often the built-in judge is right"),
    "label": ("emovllm_offline.commands.label", "label texts by hand, on a page of this machine"),
    "judge-benchmark": ("emovllm_offline.commands.judge_benchmark", "measure judges on texts whose emotions are known"),
    "data make": ("emovllm_offline.commands.data_make", "write scenarios of your own domain, by any model's endpoint"),
    "probe train": ("emovllm_offline.commands.probe_train", "train probes of a model's hidden states, layer by layer"),
    "probe compare": ("emovllm_offline.commands.probe_compare", "compare a probe with what the model itself answers"),
    "probe prompts": ("emovllm_offline.commands.probe_prompts", "measure how system prompts move what a probe reads"),
    "probe persist": (
        "emovllm_offline.commands.probe_persist",
        "measure how long an emotion can be read in a reply's states",
    ),
    "probe separate": (
        "emovllm_offline.commands.probe_separate",
        "measure how far apart emotions lie in hidden states",
    ),
    "compare": ("emovllm_offline.commands.compare", "put several runs' results into one table"),
    "card": ("emovllm_offline.commands.card", "write the model card of a circuit, with what was measured of it"),
    "push": ("emovllm.push", "put a circuit on the Hugging Face hub"),
    "import-published": ("emovllm_offline.commands.import_circuit", "make a circuit of the published artefacts"),
}
# Of commands of two words, what the first stands for.
_GROUPS = {
    "data": "make data to discover and evaluate with",
    "probe": "read emotions in a model's hidden states",
}


@dataclass(frozen=True)
class ShowOptions(Options):
    circuit: Annotated[str, Parameter(help="a circuit's folder, or a Hugging Face repository id")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 2 for what was given wrongly."""
    argv = list(sys.argv[1:] if argv is None else argv)
    reach_loopback_directly()
    if not argv:
        return _told(argv, "which command? `emovllm --help` lists them", 2)
    if not argv[0].startswith("-") and argv[0] not in {*_names(), *_GROUPS}:
        return _told(argv, f"there is no command {argv[0]!r}; `emovllm --help` lists them", 2)
    if argv[0] in _GROUPS and _named(argv) is None and not {"--help", "-h"} & {*argv}:
        there = ", ".join(name for name in _names() if name.split()[0] == argv[0])
        return _told(argv, f"there is no command {' '.join(argv[:2])!r}; there are: {there}", 2)
    if argv[0] in _OF_VLLM:
        return _reporting(argv, lambda: int(_main(argv[0])(argv[1:])))
    try:
        run, bound, _ = app(_named(argv)).parse_args(argv, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _told(argv, _usage(error), 2)
    except EmovllmError as error:
        return _told(argv, str(error), error.exit_status)
    bound.apply_defaults()
    return _reporting(argv, lambda: run(*bound.args, **bound.kwargs) or 0, bound.arguments.get("options"))


def app(chosen: str | None = None) -> App:
    """All commands; the `chosen` one with its whole description, the others with a line."""
    # An option that is given twice counts as the last says.
    usual = Parameter(negative_bool=(), negative_iterable=(), allow_repeating=True)
    emovllm = App(
        name="emovllm",
        help="Emotion circuits: found offline, served by vLLM.",
        help_format="plaintext",
        version=f"emovllm {__version__}",
        version_flags=["--version"],
        help_flags=["--help", "-h"],
        default_parameter=usual,
        result_action="return_value",
    )
    last_place = len(_OF_VLLM) + len(_COMMANDS)
    groups = {
        name: App(name=name, help=line, help_format="plaintext", help_flags=["--help", "-h"], sort_key=last_place)
        for name, line in _GROUPS.items()
    }
    for place, (name, (module, line)) in enumerate({**_OF_VLLM, **_COMMANDS}.items()):
        *first, last = name.split()
        parent = groups[first[0]] if first else emovllm
        parent.command(f"{module}:main", name=last, sort_key=place, help=None if name == chosen else line)
    for group in groups.values():
        emovllm.command(group)
    emovllm.command(show, name="show", sort_key=last_place)
    return emovllm


def own_commands() -> list[str]:
    """The commands and groups of commands whose --help is ours, not vLLM's."""
    return [*_COMMANDS, "show", *_GROUPS]


def _names() -> list[str]:
    return [*_OF_VLLM, *_COMMANDS, "show"]


def _named(argv: Sequence[str]) -> str | None:
    """The command, of one word or of two, that these arguments are of."""
    return next((name for name in (" ".join(argv[:2]), *argv[:1]) if name in _names()), None)


def show(options: Annotated[ShowOptions, FLAT]) -> None:
    """print a circuit as tables"""
    from emovllm.show import show

    show(options.circuit)


def _usage(error: CycloptsError) -> str:
    error.verbose = False
    argument = error.argument
    # Where pydantic happens to be there, cyclopts has it check the ranges, in words of its own.
    trouble = None
    if isinstance(error, ValidationError) and argument is not None:
        trouble = out_of_range(argument.field_info.annotation, argument.value)
    return str(error) if argument is None or trouble is None else f"{argument.name} {trouble}"


def _main(name: str) -> Callable[..., Any]:
    return importlib.import_module(_OF_VLLM[name][0]).main


def _reporting(argv: Sequence[str], run: Callable[[], int], options: Any = None) -> int:
    """Errors that are the user's to mend are told in a line; a bug keeps its traceback."""
    try:
        return run()
    except EmovllmError as error:
        return _told(argv, str(error), error.exit_status)
    except OSError as error:
        # What the system says of a file, or a library of a model that it was to read; a full disk is nobody's input.
        return _told(argv, " ".join(str(error).split()), 1 if error.filename is None else 2)
    except KeyboardInterrupt:
        place = getattr(options, "resumes_from", None)
        return _told(argv, f"interrupted; the same command goes on from {place}", 130) if place else 130


def _told(argv: Sequence[str], message: str, status: int) -> int:
    print(f"emovllm {_named(argv) or ''}".strip() + f": {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
