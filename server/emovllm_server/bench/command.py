"""One benchmark from its options to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from emovllm.circuit_files import load_circuit, resolve_circuit
from emovllm.errors import BenchError, CircuitError
from emovllm.files import write_atomically
from emovllm.models import public_model_id, resolve_model
from emovllm_server import serve
from emovllm_server.bench import machine, plot, report, result
from emovllm_server.bench.engine import Launcher
from emovllm_server.bench.plan import TAIL_OUTPUT, TAIL_TOKENS, Settings
from emovllm_server.bench.record import Record
from emovllm_server.bench.run import run
from emovllm_server.terminating import as_interrupted


def bench(
    model: str | None,
    circuit: str | None,
    folder: Path,
    *,
    fresh: bool,
    command: str,
    max_model_len: int | None,
    **options: Any,
) -> int:
    """Measures, and writes what was measured, said to be by `command`.

    Returns: the exit status, 130 where it was interrupted.
    Raises: BenchError, CircuitError, DefaultModelError.
    """
    circuit = circuit or serve.shipped_circuit(model)
    if circuit is None:
        raise CircuitError(
            f"no circuit for {model}: give --circuit, a folder or a Hugging Face repository id "
            f"(`{serve.offer(model)}` makes one)"
        )
    where, path = resolve_circuit(circuit), resolve_model(model)
    loaded = load_circuit(where)
    settings = Settings(
        model=public_model_id(path),
        circuit=loaded.digest(),
        versions=machine.versions(),
        max_model_len=max_model_len or -(-longest_request(**options) // 128) * 128,
        **options,
    )
    _check(settings)
    record = Record(folder, settings, fresh)
    launcher = Launcher(settings, path, str(where), folder / "logs")
    try:
        # A terminated benchmark reports, too.
        with as_interrupted():
            run(settings, loaded.spec, record, launcher)
        complete = True
    except KeyboardInterrupt:
        complete = False
    if not record.timings:
        return 130
    made = result.build(
        settings,
        len(loaded.names),
        record.best(),
        record.prefixes,
        command=command,
        machine=machine.describe(),
        engine=record.engine,
        complete=complete,
    )
    write(made, folder, _console())
    return 0 if complete else 130


def longest_request(*, prompt_tokens: int, output_tokens: int, prefix_tokens: int, **_: Any) -> int:
    return max(prompt_tokens + output_tokens, prefix_tokens + TAIL_TOKENS + TAIL_OUTPUT)


def write(made: result.Result, folder: Path, console: Console) -> None:
    """result.json, result.md, result.png, and the tables to the terminal."""
    write_atomically(folder / "result.json", (made.to_json() + "\n").encode())
    drawn: Path | None = folder / "result.png"
    try:
        plot.draw(made, folder / "result.png")
    except ImportError:
        drawn = None
        console.print("No plot: it needs matplotlib (`pip install matplotlib`, or emovllm's extra `offline`).")
    write_atomically(folder / "result.md", report.markdown(made, drawn.name if drawn else None).encode())
    report.show(made, console)
    console.print(f"{folder}: result.json, result.md{', result.png' if drawn else ''}", highlight=False)


def _check(settings: Settings) -> None:
    if settings.output_tokens < 2:
        raise BenchError("--output-tokens must be at least 2: the time per token is that after the first")
    longest = longest_request(**settings.model_dump())
    if settings.max_model_len < longest:
        raise BenchError(f"--max-model-len {settings.max_model_len} is too short for requests of {longest} tokens")


def _console() -> Console:
    console = Console()
    # Where nobody looks at it, in a file, the tables need not fold.
    return console if console.is_terminal else Console(width=140)
