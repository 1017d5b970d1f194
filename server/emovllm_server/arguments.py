"""The arguments of `emovllm serve`, `emovllm run-batch` and `emovllm verify`: vLLM's and our options, from the command
line and from the file of vLLM's --config.

Each of our options is None where neither gives it; the command line goes before the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from emovllm.errors import OptionsError
from emovllm.models import NAME, begin_conversion
from emovllm.progress import stage
from emovllm_server.options import add_options, add_playground_option

COMMANDS = {
    "serve": ("vLLM's OpenAI-compatible server with an `emotion` parameter.", "[model]"),
    "run-batch": (
        "Answers an OpenAI Batch file, whose lines may ask for an `emotion`. Given again, the command goes on.",
        "-i INPUT.jsonl -o OUTPUT.jsonl [model]",
    ),
    "verify": (
        "Checks on this machine that an engine started with these arguments does what Hugging Face with hooks does, "
        "leaves plain requests alone, and what it costs beside plain vLLM. Minutes.",
        "[model]",
    ),
}
_CONFIG = "--config"


def parse(
    argv: Sequence[str], command: str, add_more: Callable[[Any], None] | None = None
) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Our options, and vLLM's arguments, whose `model_tag` is the model asked for, or None.

    add_more: adds the options that this command alone has. Raises: OptionsError; SystemExit, as argparse does.
    """
    beside = _asks_for_the_default(argv) and begin_conversion()
    with stage("Loading vLLM", hint=f"and converting {NAME} beside it, once" if beside else ""):
        import vllm.logger
        from vllm.entrypoints.cli import serve as vllm_serve

    of_serve = add_playground_option if command == "serve" else None
    adders = [add_options, *filter(None, [of_serve, add_more])]
    own, parser = _own_parser(adders), _vllm_parser(command, adders)
    options, rest = own.parse_known_args(_config_apart(argv))
    args, in_file = _parse_with_file(parser, own, rest)
    for name, value in vars(options).items():
        # vLLM's parser also takes an option that is abbreviated, or written with underscores.
        found = (value, vars(args).pop(name), getattr(in_file, name))
        setattr(options, name, next((each for each in found if each is not None), None))
    if args.model_tag is None:
        args.model_tag = args.model  # given as an option, or in the file
    args.subparser = "serve"
    if hasattr(vllm.logger, "configure_logging_from_args"):  # since 0.31
        vllm.logger.configure_logging_from_args(args)
    vllm_serve.ServeSubcommand().validate(args)
    return options, args


def _asks_for_the_default(argv: Sequence[str]) -> bool:
    """Whether none of these arguments can be a model; told without vLLM's parser, which knows what is an option's
    value."""
    if any(argument.startswith(("--model", _CONFIG, "--help", "-h")) for argument in argv):
        return False
    return all(
        argument.startswith("-") or (before.startswith("-") and "/" not in argument)
        for before, argument in itertools.pairwise(["", *argv])
    )


class _OwnParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionsError(message)


def _own_parser(adders: Sequence[Callable[[Any], None]]) -> _OwnParser:
    own = _OwnParser(add_help=False, allow_abbrev=False)
    for add in adders:
        add(own)
    return own


def _vllm_parser(command: str, adders: Sequence[Callable[[Any], None]]) -> Any:
    """vLLM's parser of its server; it has our options too, for its --help."""
    from vllm.entrypoints.cli import serve as vllm_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    description, usage = COMMANDS[command]
    parser = FlexibleArgumentParser(
        prog=f"emovllm {command}",
        description=f"{description} Without a model, {NAME} with its circuit. Takes every argument of `vllm serve`.",
        usage=f"emovllm {command} {usage} [--circuit [NAME=]DIR_OR_REPO_ID] [options]",
    )
    for add in adders:
        add(parser)
    # Through the subcommand's module, for the function's own has moved between versions.
    parser = vllm_serve.make_arg_parser(parser)
    # vLLM's default is a model like any other, which may be asked for.
    parser.set_defaults(model=None)
    return parser


def _config_apart(argv: Sequence[str]) -> list[str]:
    """`--config=FILE`, which vLLM would not read, as `--config FILE`."""
    apart: list[str] = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        apart += [name, value] if equals and name == _CONFIG else [argument]
    return apart


def _parse_with_file(
    parser: Any, own: _OwnParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, argparse.Namespace]:
    """vLLM's arguments, and our options in the file. vLLM reads a copy of the file without ours: it would take the
    second of several values for the model."""
    rest = list(argv)
    config = _config_file(rest)
    if config is None:
        return parser.parse_args(rest), own.parse_args([])
    names = vars(own.parse_args([]))
    ours = {key: value for key, value in config.items() if str(key).replace("-", "_") in names}
    try:
        in_file = own.parse_args(_as_arguments(ours))
    except OptionsError as error:
        raise OptionsError(f"{rest[rest.index(_CONFIG) + 1]}: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        _write_yaml(path, {key: value for key, value in config.items() if key not in ours})
        rest[rest.index(_CONFIG) + 1] = str(path)
        return parser.parse_args(rest), in_file


def _config_file(argv: Sequence[str]) -> dict[str, Any] | None:
    """What the file of --config holds; None without one. Raises: OptionsError."""
    import yaml

    if _CONFIG not in argv:
        return None
    if argv.count(_CONFIG) > 1 or argv[-1] == _CONFIG:
        raise OptionsError(f"{_CONFIG} takes one file, and is given once")
    path = Path(argv[argv.index(_CONFIG) + 1])
    if path.suffix not in (".yaml", ".yml"):
        raise OptionsError(f"{path}: {_CONFIG} takes a file of YAML, whose name ends in .yaml or .yml")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionsError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if config is not None and not isinstance(config, dict):
        raise OptionsError(f"{path}: give one option a line, as in `max-model-len: 512`")
    return config or {}


def _write_yaml(path: Path, config: Mapping[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _as_arguments(ours: Mapping[str, Any]) -> list[str]:
    """Our options of a file as a command line gives them. Several circuits are a list of NAME=DIR, or a map, several
    guards a list; emotions may be a list, a default emotion a map of weights, and a default schedule either."""
    arguments: list[str] = []
    for key, value in ours.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            # An option that takes a value refuses to have none.
            arguments += [flag if value else f"--no-{flag[2:]}"]
        elif value is None:
            arguments += [flag]
        elif flag == "--circuit" and isinstance(value, dict):
            arguments += [f"{flag}={name}={source}" for name, source in value.items()]
        elif flag in ("--circuit", "--guard") and isinstance(value, list):
            arguments += [f"{flag}={source}" for source in value]
        elif flag == "--emotions" and isinstance(value, list):
            arguments += [f"{flag}={','.join(map(str, value))}"]
        else:
            arguments += [f"{flag}={json.dumps(value) if isinstance(value, dict | list) else value}"]
    return arguments
