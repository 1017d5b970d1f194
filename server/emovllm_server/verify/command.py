"""`emovllm verify`: what an engine does on this machine with these settings, beside Hugging Face and plain vLLM."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emovllm.emotion import KEY
from emovllm.engine.settings import DEFAULT_NAME
from emovllm.errors import OptionsError
from emovllm_server import serve
from emovllm_server.arguments import parse
from emovllm_server.terminating import as_interrupted
from emovllm_server.verify import report
from emovllm_server.verify.options import ROUNDS, add_options
from emovllm_server.verify.run import Subject, verify


def main(argv: Sequence[str]) -> int:
    """Verifies. `argv` is what follows `emovllm verify`. Returns the exit status: 1 where a check failed."""
    serve.prepare_environment()
    options, args = parse(argv, "verify", add_options)
    serve.fill_in(args, options)
    subject = Subject(list(argv), args.model, _circuit(args), args.dtype, args.max_model_len)
    rounds = ROUNDS if options.rounds is None else options.rounds
    if rounds < 0:
        raise OptionsError(f"--rounds must be at least 0, got {rounds}")
    # Two engines at once: the default, nine tenths of a CPU machine's memory for each, cannot be had.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    logs = options.logs or Path(tempfile.mkdtemp(prefix="emovllm-verify-"))
    logs.mkdir(parents=True, exist_ok=True)
    with as_interrupted():
        findings = verify(subject, rounds, logs)
    if findings.passed and options.logs is None:
        shutil.rmtree(logs, ignore_errors=True)
    print(json.dumps(report.as_json(findings), indent=1) if options.json else report.as_text(findings))
    if not findings.passed:
        print(f"emovllm verify: the engines' logs are in {logs}", file=sys.stderr)
    return 0 if findings.passed else 1


def _circuit(args: argparse.Namespace) -> str:
    """The folder of the one circuit. Raises: OptionsError."""
    if args.data_parallel_size > 1 or (args.api_server_count or 1) > 1:
        raise OptionsError(
            "verify runs one engine: leave out --data-parallel-size and --api-server-count; each engine of theirs is "
            "as this one"
        )
    circuit = args.additional_config[KEY]["circuit"]
    if isinstance(circuit, str):
        return circuit
    if list(circuit) != [DEFAULT_NAME]:
        raise OptionsError("verify takes one circuit at a time: give --circuit DIR once, without a name")
    folder: str = circuit[DEFAULT_NAME]
    return folder
