"""`emovllm push`: a circuit's folder as a repository of the Hugging Face hub, from where `--circuit` takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from emovllm import __version__, card
from emovllm.circuit import Circuit
from emovllm.circuit_files import JSON_NAME, TENSORS_NAME, beside, is_repository_id, load_circuit
from emovllm.errors import CircuitError, OptionError, ProbeError, TransferError
from emovllm.options import FLAT, Options
from emovllm.probe import NAME as PROBE_NAME
from emovllm.probe import Probe, load_probe

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

# Dimensions by which a probe's model is another than the circuit's.
_DIMENSIONS = ("num_hidden_layers", "hidden_size", "vocab_size")


@dataclass(frozen=True)
class PushOptions(Options):
    folder: Annotated[Path, Parameter(help="the circuit's folder")]
    repository: Annotated[str, Parameter(help="OWNER/NAME of the repository, which is made where there is none")]
    _: KW_ONLY
    private: Annotated[bool, Parameter(help="make it private; a public one that is there is refused")] = False
    revision: Annotated[
        str | None,
        Parameter(help="the branch to commit to, made where there is none (default: the usual one)", metavar="BRANCH"),
    ] = None
    message: Annotated[str | None, Parameter(help="the commit's (default: the digest)", metavar="TEXT")] = None


@dataclass(frozen=True)
class Content:
    """A circuit's folder that has been checked.

    files: what of it goes to the hub, by name.
    """

    circuit: Circuit
    probe: Probe | None
    files: dict[str, Path]


def main(options: Annotated[PushOptions, FLAT]) -> None:
    """Put a circuit on the Hugging Face hub, in one commit: its two files, its probe and README.md where the folder has
    them, and nothing else of the folder. The circuit and the probe are loaded first, and refused if they are not
    whole. Without a README.md a model card is made of what the circuit says of itself, unless the repository has one.
    Log in by HF_TOKEN or `hf auth login`; HF_ENDPOINT names another hub.
    """
    content = check(options.folder)
    circuit = content.circuit
    print(f"{options.folder}: {', '.join(circuit.names)}; of {circuit.spec.model.id}, digest {circuit.digest()[:16]}")
    if content.probe is not None:
        print(f"probe: {', '.join(content.probe.spec.labels)}; after layer {content.probe.spec.layer}")
    commit = push(content, options)
    at = options.repository if options.revision is None else f"{options.repository}@{options.revision}"
    known = is_repository_id(circuit.spec.model.id)
    print(f"emovllm serve {circuit.spec.model.id if known else 'MODEL'} --circuit {at}")
    print(f"this very commit: --circuit {options.repository}@{commit}")


def check(folder: Path) -> Content:
    """What of a folder is a circuit's. Raises: CircuitError, ProbeError."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise CircuitError(f"{folder}: no such circuit folder{beside(folder)}")
    circuit = load_circuit(folder)
    names = (JSON_NAME, TENSORS_NAME, PROBE_NAME, card.NAME)
    files = {name: folder / name for name in names if (folder / name).is_file()}
    probe = load_probe(folder) if PROBE_NAME in files else None
    if probe is not None and any(
        getattr(probe.spec.model, name) != getattr(circuit.spec.model, name) for name in _DIMENSIONS
    ):
        raise ProbeError(
            f"{files[PROBE_NAME]}: of {probe.spec.model.id}, which is not the circuit's model "
            f"{circuit.spec.model.id}: take it out of the folder"
        )
    return Content(circuit, probe, files)


def push(content: Content, options: PushOptions) -> str:
    """Uploads it, and prints what goes where. Returns: the commit's hash.

    Raises: OptionError, TransferError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repository, revision = options.repository, options.revision
    if not is_repository_id(repository):
        raise OptionError(f"{repository}: not a repository's id, OWNER/NAME (a branch is --revision BRANCH)")
    api = HfApi(library_name="emovllm", library_version=__version__)
    with _told(repository):
        _log_in()
        there = _opened(api, options)
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for name, path in content.files.items():
            print(f"  {name}: {path.stat().st_size:,} bytes")
            operations.append(CommitOperationAdd(name, str(path)))
        if card.NAME not in content.files and card.NAME in there:
            print(f"  {card.NAME}: the repository's own is kept")
        elif card.NAME not in content.files:
            text = card.model_card(content.circuit, repository, revision=revision, probe=content.probe is not None)
            print(f"  {card.NAME}: made from {JSON_NAME}; it names no licence, and says nothing of how well it steers")
            operations.append(CommitOperationAdd(card.NAME, text.encode()))
        # Who serves it would have a probe that this folder does not.
        if content.probe is None and PROBE_NAME in there:
            print(f"  {PROBE_NAME}: removed, for the folder has none")
            operations.append(CommitOperationDelete(PROBE_NAME))
        message = options.message or f"emovllm circuit {content.circuit.digest()[:16]}"
        # One commit: nobody gets the new JSON with the old tensors. `upload_folder` may make several.
        done = api.create_commit(repository, operations, commit_message=message, revision=revision)
    print(done.commit_url)
    return str(done.oid)


def _opened(api: HfApi, options: PushOptions) -> set[str]:
    """Makes the repository and the branch where they are missing. Returns: the names of the files that are there.

    Raises: OptionError where it is to be private, and is not.
    """
    url = api.create_repo(options.repository, private=options.private or None, exist_ok=True)
    if options.private and not api.repo_info(options.repository).private:
        raise OptionError(
            f"--private: {options.repository} is there, and public; make it private in its settings first, or leave "
            "the option out"
        )
    # Those of pull requests are there, or not to be made by hand.
    if options.revision is not None and not options.revision.startswith("refs/"):
        api.create_branch(options.repository, branch=options.revision, exist_ok=True)
    info = api.repo_info(options.repository, revision=options.revision)
    print(f"to {url}{'' if options.revision is None else f', branch {options.revision}'}:")
    return {file.rfilename for file in info.siblings or ()}


def _log_in() -> None:
    """Raises: TransferError where there is no token."""
    from huggingface_hub import get_token

    if not get_token():
        raise TransferError("not logged in to Hugging Face: set HF_TOKEN to a token that may write, or `hf auth login`")


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """What the hub and the way to it may say, as an error that is the user's to mend. Raises: TransferError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # The HTTP client's own errors, whichever that is in this version, are of the class that the hub's is derived from.
    of_http = HfHubHTTPError.__mro__[1]
    try:
        yield
    except HfHubHTTPError as error:
        raise TransferError(f"{repository}: {_refusal(error, repository.partition('/')[0])}") from error
    except (of_http, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise TransferError(f"{repository}: could not be uploaded to {constants.ENDPOINT} ({said})") from error


def _refusal(error: HfHubHTTPError, owner: str) -> str:
    """What a status of the hub's means here."""
    status = error.response.status_code
    said = " ".join((error.server_message or str(error)).split())
    if status == 401:
        return f"the hub does not take the token (HF_TOKEN, or that of `hf auth login`): is it still valid? ({said})"
    if status == 403:
        return f"the token may not write there: it needs the right to write, and to do so for {owner} ({said})"
    return f"the hub answered {status} ({said})"
