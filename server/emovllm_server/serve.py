"""`emovllm serve`: vLLM's own server, every argument of `vllm serve` included, with a circuit."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from emovllm import cpu
from emovllm.engine import shutdown
from emovllm.engine.config import KEY
from emovllm.errors import CircuitError
from emovllm.models import NAME, is_default, resolve_model, shipped_circuits
from emovllm.plugin import name_plugins
from emovllm.progress import stage
from emovllm_server import starting
from emovllm_server.options import add_options, settings

_COMMANDS = {
    "serve": ("vLLM's OpenAI-compatible server with an `emotion` parameter.", "[model]"),
    "run-batch": (
        "Answers an OpenAI Batch file, whose lines may ask for an `emotion`. Given again, the command goes on.",
        "-i INPUT.jsonl -o OUTPUT.jsonl [model]",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Serves until interrupted. `argv` is what follows `emovllm serve`. Returns 1 where the engine died."""
    prepare_environment()
    options, args = parse(argv, "serve")
    fill_in(args, options)
    return _run(args)


def fill_in(args: argparse.Namespace, options: argparse.Namespace) -> None:
    """The default model, the circuits, and what else our options ask for, into vLLM's arguments.

    Args:
        args: `model_tag` is the model asked for, or None.
    Raises: CircuitError, DefaultModelError.
    """
    model = args.model_tag
    ours = settings(options)
    if "circuit" not in ours and (shipped := shipped_circuit(model, args.additional_config)) is not None:
        ours["circuit"] = shipped
    if is_default(model):
        # vLLM would take nine tenths of a CPU machine's memory for the cache, which a small model has no use for.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        args.model_tag = resolve_model(model)
        if not args.served_model_name:
            args.served_model_name = [NAME]
    ours = {**args.additional_config.get(KEY, {}), **ours}
    if ours:
        args.additional_config = {**args.additional_config, KEY: ours}
    if "circuit" not in ours:
        raise CircuitError(
            f"no circuit for {model}: give --circuit, a folder or a Hugging Face repository id "
            "(`emovllm discover` makes one)"
        )


def prepare_environment() -> None:
    """Before vLLM is imported: what `emovllm serve` decides where the user has not."""
    name_plugins()
    cpu.prepare()
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def shipped_circuit(model: str | None, additional_config: dict[str, object]) -> str | None:
    if KEY in additional_config or not is_default(model):
        return None
    return str(shipped_circuits() / NAME)


def parse(
    argv: Sequence[str], command: str, *options: tuple[str, str, str]
) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Our options of a command, and vLLM's arguments; `options` (flags and help) are those of this command alone."""
    with stage("Loading vLLM"):
        import vllm.logger
        from vllm.entrypoints.cli import serve as vllm_serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    description, usage = _COMMANDS[command]
    parser = FlexibleArgumentParser(
        prog=f"emovllm {command}",
        description=f"{description} Without a model, {NAME} with its circuit. Takes every argument of `vllm serve`.",
        usage=f"emovllm {command} {usage} [--circuit [NAME=]DIR_OR_REPO_ID] [options]",
    )
    # Ours are read by our own parser; vLLM's has them for its --help.
    for each in (own, parser):
        for short, flag, told in options:
            each.add_argument(short, flag, help=told)
        add_options(each)
    ours, rest = own.parse_known_args(list(argv))
    # Through the subcommand's module, for the function's own has moved between versions.
    parser = vllm_serve.make_arg_parser(parser)
    args = parser.parse_args(rest)
    if args.model_tag is None and args.model != parser.get_default("model"):
        args.model_tag = args.model  # given as an option
    args.subparser = "serve"
    if hasattr(vllm.logger, "configure_logging_from_args"):  # since 0.31
        vllm.logger.configure_logging_from_args(args)
    vllm_serve.ServeSubcommand().validate(args)
    return ours, args


def _run(args: argparse.Namespace) -> int:
    # The `vllm` command itself does not start under vllm-cpu, which has another distribution name; its serve
    # subcommand does.
    from vllm.entrypoints.cli.serve import ServeSubcommand

    starting.begin()
    try:
        ServeSubcommand.cmd(args)
    finally:
        starting.end(done=False)
    if shutdown.died():
        print("emovllm: the engine ended unexpectedly, and the server with it; see above for why", file=sys.stderr)
        return 1
    return 0
