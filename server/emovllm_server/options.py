"""The options of `emovllm serve` that are not vLLM's, and the settings that they make."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from emovllm.circuit_files import resolve_circuit
from emovllm.engine.settings import DEFAULT_NAME, Kernel
from emovllm.environment import ADMIN_KEY
from emovllm.errors import CircuitError, OptionsError
from emovllm.guards import ACTIONS, TOKENS, Guard

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})=(.+)", re.DOTALL)


def add_options(parser: Any) -> None:
    """parser: argparse's, or vLLM's."""
    parser.add_argument(
        "--circuit",
        action="append",
        metavar="[NAME=]DIR_OR_REPO_ID",
        help="The circuit: a folder, or a Hugging Face repository, OWNER/NAME[@REVISION]. Several, with a name each, "
        "are served together.",
    )
    parser.add_argument(
        "--emotions", metavar="NAME,...", help="The only emotions that requests may ask for (default: all)."
    )
    parser.add_argument(
        "--max-strength",
        type=float,
        help="The largest emotion_strength, where the circuit's own maximum is not lower; 1.0 is the recommended one.",
    )
    parser.add_argument(
        "--default-emotion",
        help='For requests that name none: an emotion, or weights as JSON. A request opts out with "none".',
    )
    parser.add_argument(
        "--default-schedule",
        metavar="JSON",
        help="For requests with an emotion and no emotion_schedule of their own: as in a request.",
    )
    parser.add_argument(
        "--emotion-capacity",
        type=int,
        help="Room for as many emotions of all circuits together, so that circuits can be loaded later (default: those "
        "of the circuits given).",
    )
    parser.add_argument(
        "--admin-key",
        help=f"Opens the routes that load and unload circuits to whoever has this key (default: ${ADMIN_KEY}).",
    )
    parser.add_argument("--circuit-root", metavar="DIR", help="The folder below which circuits may be loaded later.")
    parser.add_argument(
        "--injection-kernel",
        choices=get_args(Kernel),
        help="The form in which emotions are added (default: auto, what fits the device and the number of emotions).",
    )
    add_readout_options(parser)
    parser.add_argument(
        "--guard",
        action="append",
        metavar="LABEL>BOUND[xTOKENS]:ACTION",
        help="What is done to replies, of all requests, that read as a label with more than a bound, some tokens in a "
        f"row (default: {TOKENS}): {' or '.join(ACTIONS)}. May be given several times; needs --readout or --probe.",
    )


def add_readout_options(parser: Any) -> None:
    """parser: argparse's, or vLLM's."""
    parser.add_argument(
        "--readout",
        action=argparse.BooleanOptionalAction,
        help="Requests may ask what the probe in the circuit's folder reads while the model writes (emotion_readout).",
    )
    parser.add_argument(
        "--probe",
        metavar="DIR",
        help="The same with a probe of its own folder, as `emovllm probe train` writes it. Without --circuit, emotions "
        "are read alone.",
    )
    parser.add_argument(
        "--readout-layer", type=int, metavar="N", help="The layer that is read after (default: the probe's best)."
    )


def add_playground_option(parser: Any) -> None:
    """parser: argparse's, or vLLM's. Of `emovllm serve` alone: no other command has anybody who could open a page."""
    parser.add_argument(
        "--playground",
        action=argparse.BooleanOptionalAction,
        help="Serve a page at /playground to chat with plain and steered replies side by side.",
    )


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options add to `additional_config["emovllm"]`. Sets the admin key in the environment.

    Raises: CircuitError, OptionsError.
    """
    found: dict[str, Any] = {
        "emotions": _names(options.emotions),
        "max_strength": options.max_strength,
        "default_emotion": _emotion(options.default_emotion),
        "default_schedule": _schedule(options.default_schedule),
        "capacity": options.emotion_capacity,
        "circuit_root": str(Path(options.circuit_root).resolve()) if options.circuit_root is not None else None,
        "injection_kernel": options.injection_kernel,
        "circuit": _circuits(options.circuit or []),
        "readout": options.readout,
        "probe": str(Path(options.probe).expanduser().resolve()) if options.probe is not None else None,
        "readout_layer": options.readout_layer,
        "guards": _guards(options.guard),
        "playground": getattr(options, "playground", None),
    }
    if options.admin_key is not None:
        os.environ[ADMIN_KEY] = options.admin_key
    return {name: value for name, value in found.items() if value is not None}


def _circuits(given: Sequence[str]) -> dict[str, str] | None:
    circuits: dict[str, str] = {}
    for text in given:
        if not text:
            raise CircuitError("--circuit is empty: give a folder or a Hugging Face repository id")
        named = None if Path(text).is_dir() else _NAMED.fullmatch(text)
        name, source = named.groups() if named else (DEFAULT_NAME, text)
        if name in circuits:
            raise CircuitError(
                f"--circuit {text}: {name} is given twice; several circuits need a name each, --circuit NAME=DIR"
            )
        # Absolute, for workers may run elsewhere in the file system.
        circuits[name] = str(resolve_circuit(source))
    return circuits or None


def _guards(given: Sequence[str] | None) -> list[str] | None:
    try:
        return [str(Guard.parse(text)) for text in given] if given else None
    except ValueError as error:
        raise OptionsError(f"--guard: {error}") from None


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text is not None else None


def _emotion(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    return _json("--default-emotion: not a name, nor JSON", text)


def _schedule(text: str | None) -> Any:
    return None if text is None else _json("--default-schedule: not JSON", text)


def _json(trouble: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CircuitError(f"{trouble} ({error})") from None
