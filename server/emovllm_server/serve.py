"""`emovllm serve`: vLLM's own server, every argument of `vllm serve` included, with a circuit."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from collections.abc import Sequence

from emovllm.circuit import CircuitError, resolve_circuit
from emovllm.default_model import DEFAULT_MODEL_ID, NAME, cache_root, resolve_model, shipped_circuits
from emovllm.engine.config import KEY
from emovllm.plugin import name_plugins

_DEFAULT = (None, "default", DEFAULT_MODEL_ID)


def main(argv: Sequence[str]) -> int:
    """Serves until interrupted. `argv` is what follows `emovllm serve`."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--circuit")
    ours, rest = own.parse_known_args(list(argv))
    prepare_environment()
    args = _parse(rest)
    model = args.model_tag
    circuit = ours.circuit or shipped_circuit(model, args.additional_config)
    if model in _DEFAULT:
        # vLLM would take nine tenths of a CPU machine's memory for the cache, which a small model has no use for.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        args.model_tag = resolve_model(model)
        if not args.served_model_name:
            args.served_model_name = [NAME]
    if circuit is not None:
        # Absolute, for workers may run elsewhere in the file system.
        settings = {**args.additional_config.get(KEY, {}), "circuit": str(resolve_circuit(circuit))}
        args.additional_config = {**args.additional_config, KEY: settings}
    if KEY not in args.additional_config:
        raise CircuitError(f"no circuit for {model}: give --circuit, a folder or a Hugging Face repository id "
                           "(`emovllm discover` makes one)")  # fmt: skip
    _run(args)
    return 0


def prepare_environment() -> None:
    """Before vLLM is imported: what `emovllm serve` decides where the user has not."""
    name_plugins()
    if _is_cpu_build():
        # vLLM saves its whole compiled model and then, on a CPU, fails to load it and compiles anew (0.32: "no
        # attribute 'finalize_loading'"). PyTorch's own caches work: 12 s in place of 40 for the default model.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "inductor"))
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def _is_cpu_build() -> bool:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def shipped_circuit(model: str | None, additional_config: dict[str, object]) -> str | None:
    if KEY in additional_config or model not in _DEFAULT:
        return None
    return str(shipped_circuits() / NAME)


def _parse(argv: list[str]) -> argparse.Namespace:
    import vllm.logger
    from vllm.entrypoints.cli import serve as vllm_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(
        prog="emovllm serve",
        description="vLLM's OpenAI-compatible server with an `emotion` parameter. Without a model, serves "
        f"{NAME} with its circuit. Takes every argument of `vllm serve`.",
        usage="emovllm serve [model] [--circuit DIR_OR_REPO_ID] [options of vllm serve]",
    )
    parser.add_argument("--circuit", help="The circuit: a folder, or a Hugging Face repository id.")
    # Through the subcommand's module, for the function's own has moved between versions.
    parser = vllm_serve.make_arg_parser(parser)
    args = parser.parse_args(argv)
    if args.model_tag is None and args.model != parser.get_default("model"):
        args.model_tag = args.model  # given as an option
    args.subparser = "serve"
    if hasattr(vllm.logger, "configure_logging_from_args"):  # since 0.31
        vllm.logger.configure_logging_from_args(args)
    vllm_serve.ServeSubcommand().validate(args)
    return args


def _run(args: argparse.Namespace) -> None:
    # The `vllm` command itself does not start under vllm-cpu, which has another distribution name; its serve
    # subcommand does.
    from vllm.entrypoints.cli.serve import ServeSubcommand

    ServeSubcommand.cmd(args)
