"""What goes wrong for a reason that the user can mend.

The command's one handler (emovllm/cli.py) tells each of these in a line and ends with its `exit_status`; anything else
is a bug of ours, and keeps its traceback.

    EmovllmError
    ├── InputError                  what was given cannot be used                                    2
    │   ├── CircuitError            a circuit                  ── AssemblyError
    │   ├── ProbeError              a probe
    │   ├── ModelError              a model                    ── DefaultModelError, UnsupportedModelError,
    │   │                                                         WeightsError, PromptError, ActivationError
    │   ├── DataError               a file of data             ── StyleError, ExamplesError, BatchFileError,
    │   │                                                         PublishedError, TooFewError
    │   ├── OptionError             an option of a command
    │   ├── Unsupported             an engine's configuration
    │   ├── OptionsError            the options of a server
    │   ├── StoredError             what earlier work left     ── CheckpointError, FindingsError
    │   └── TaskError               what a command is asked    ── DiscoveryError, ElicitError, RefinementError,
    │                                                             OwnRepliesError, ResultsError, EvaluationError,
    │                                                             BenchError, BuildError
    ├── RequestError                a request, told by HTTP    ── EmotionError, AdminError                1
    └── ServiceError                what others answer         ── JudgeError (UnusableJudge: 2), EmbeddingError,
                                                                  EndpointError (RefusedByEndpoint, FilteredByEndpoint),
                                                                  ScrapeError, TransferError, EngineDied  1

Those that vLLM meets are ValueErrors too, which its server answers with status 400.
"""

from __future__ import annotations

from typing import Literal

# Why a request was refused, as metrics count it.
Reason = Literal["unknown_emotion", "not_allowed", "over_maximum", "bad_value", "unknown_field", "wrong_route"]


class EmovllmError(Exception):
    """Something that the user can mend; the message says what and how."""

    exit_status = 1


class InputError(EmovllmError):
    """What was given cannot be used."""

    exit_status = 2


class OptionError(InputError):
    """An option that cannot be as it was given, by its name, and what it may be."""


class CircuitError(InputError):
    """A circuit that cannot be used, and why."""


class AssemblyError(CircuitError):
    """A circuit that cannot be assembled as asked."""


class ProbeError(InputError):
    """A probe that cannot be used, and why."""


class ModelError(InputError):
    """A model that cannot be used, and why."""


class DefaultModelError(ModelError):
    """The default model cannot be made, and what to do about it."""


class UnsupportedModelError(ModelError):
    """A model whose sublayers could not be found, and which are missing."""


class WeightsError(ModelError):
    """Weights that cannot be read, and what is missing."""


class PromptError(ModelError):
    """A tokenizer that cannot render a chat, and why."""


class ActivationError(ModelError):
    """Activations that cannot be used."""


class DataError(InputError):
    """A data file that cannot be used: its name, the line, and what is wrong there."""


class StyleError(DataError):
    """A style that cannot be used, and why."""


class ExamplesError(DataError):
    """A file of replies that cannot be used: its name, the line, and what is wrong there."""


class BatchFileError(DataError):
    """A batch that cannot be run as it is, and what to change."""


class PublishedError(DataError):
    """An artefact that is missing or not as expected; the message names the file."""


class TooFewError(DataError):
    """Too few complete groups, and what to try."""


class Unsupported(InputError, ValueError):
    """A configuration that we cannot steer exactly, and what to change."""


class OptionsError(InputError):
    """Options of a server that cannot be used, and what to change."""


class StoredError(InputError):
    """What earlier work left cannot be used."""


class CheckpointError(StoredError):
    """Progress that cannot be taken up, and what to do."""


class FindingsError(StoredError):
    """Findings that cannot be read, and why."""


class TaskError(InputError):
    """What a command cannot do as asked, and what to change."""


class DiscoveryError(TaskError):
    """Input from which no circuit can be made, and why."""


class ElicitError(TaskError):
    """Elicitation that cannot start or go on, and why."""


class RefinementError(TaskError):
    """A circuit or data that cannot be refined, and why."""


class OwnRepliesError(TaskError):
    """What cannot be sampled as asked, and what to change."""


class ResultsError(TaskError):
    """A validation that cannot be made or read, and why."""


class EvaluationError(TaskError):
    """An evaluation that cannot be run as asked, and what to change."""


class BenchError(TaskError):
    """A benchmark that cannot be run as asked, and what to change."""


class BuildError(TaskError):
    """A circuit that cannot be built as asked, and what to change."""


class RequestError(EmovllmError):
    """A request that cannot be served as asked."""


class EmotionError(RequestError, ValueError):
    """A request that cannot be served as asked; `parameter` names the field at fault."""

    def __init__(self, parameter: str, message: str, reason: Reason = "bad_value") -> None:
        super().__init__(message)
        self.parameter = parameter
        self.reason = reason


class AdminError(RequestError):
    """A circuit that cannot be loaded or unloaded; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServiceError(EmovllmError):
    """What is asked of others failed."""


class JudgeError(ServiceError):
    """A judge that gave no valid answer, and why."""


class UnusableJudge(JudgeError):
    """A judge that cannot be used as it was chosen, and what to change."""

    exit_status = 2


class EmbeddingError(ServiceError):
    """Embeddings that cannot be made, and what to do about it."""


class EndpointError(ServiceError):
    """An endpoint that does not answer as an OpenAI-compatible one does, and what to do about it."""


class RefusedByEndpoint(EndpointError):
    """The endpoint says that a request is not well formed (400 or 422): it may lack an optional feature."""


class FilteredByEndpoint(EndpointError):
    """The endpoint keeps a text or its answer back: its content filter or its model refuses it."""


class ScrapeError(ServiceError):
    """A server whose metrics could not be read, and why."""


class TransferError(ServiceError):
    """A file that could not be fetched from a URL or hub or sent there, and why."""


class EngineDied(ServiceError):
    """The engine ended before the batch did."""
