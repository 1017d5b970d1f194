"""`additional_config["emovllm"]`: what a user asks of an engine, and what is filled in.

The settings travel in vLLM's own configuration, which every process receives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from emovllm.catalogue import CircuitName
from emovllm.emotion import KEY
from emovllm.errors import Unsupported
from emovllm.phases import Markers, Phase
from emovllm.policy import Policy
from emovllm.readout import Reading

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Emotions in a circuit, whose coefficients every token carries.
MAX_EMOTIONS = 256
# The name of a circuit that was given without one.
DEFAULT_NAME = "default"

# In which form emotions are added (`emovllm.engine.form`).
Kernel = Literal["auto", "fused", "mm", "triton"]

_Source = Annotated[str, Field(min_length=1)]


class Settings(Policy):
    """`additional_config["emovllm"]`. A user gives `circuit` and what else is wanted; the rest is filled in.

    circuit: a folder or a Hugging Face repository id; or several, by the names that requests call them.
    capacity: emotions that the engine has room for, those of all circuits together; more than they have leaves room for
        circuits that are loaded later, and adds to every projection of the model.
    circuit_root: the folder below which circuits may be loaded from later.
    injection_kernel: the form in which emotions are added; `auto` is what fits the device and the columns.
    readout: whether requests may ask what a probe reads (`emovllm.readout`): the one in the circuit's folder.
    probe: another probe's folder or file; with it there may be no circuit.
    readout_layer: the layer that is read after; by default the probe's best.
    tool_parser: vLLM's parser of tool calls, by its name, so that calls can be spared; `emovllm serve` gives that of
        --tool-call-parser.
    playground: whether the server has a page to chat with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    circuit: _Source | Annotated[dict[CircuitName, _Source], Field(min_length=1)] | None = None
    capacity: Annotated[int, Field(gt=0, le=MAX_EMOTIONS)] | None = None
    circuit_root: _Source | None = None
    allow_untested_vllm: bool = False
    # KV connectors that are not vLLM's, of which the user says that they go by its block hashes or own blocks.
    trusted_connectors: tuple[str, ...] = ()
    # Whether requests may ask for the steering baseline too, as evaluations do.
    steering: bool = False
    injection_kernel: Kernel = "auto"
    readout: bool = False
    probe: _Source | None = None
    readout_layer: Annotated[int, Field(ge=0)] | None = None
    tool_parser: _Source | None = None
    playground: bool = False
    # Filled in: each circuit's digest.
    digests: Annotated[dict[str, str], Field(default_factory=dict)]
    # Part of the compile cache's key: a graph compiled without our sites, or with others, must never be loaded.
    graph: str = ""
    # What is read; None where nothing is.
    reading: Reading | None = None
    # What begins and ends the phases of a reply; of those that the engine's parsers tell.
    markers: Annotated[dict[Phase, Markers], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Settings:
        if self.circuit is None and self.probe is None:
            raise ValueError("no circuit: name a folder or a Hugging Face repository id (or a probe, to read alone)")
        return self

    @property
    def sources(self) -> dict[str, str]:
        """Each circuit's folder or repository, by name."""
        if self.circuit is None:
            return {}
        return {DEFAULT_NAME: self.circuit} if isinstance(self.circuit, str) else self.circuit


class Carried(str):
    """Settings on their way through vLLM's configuration. As a string they are `graph` alone, which is what vLLM's
    compile cache then knows of them: a moved folder or another limit must not compile the model anew. A worker adds the
    kernel that it chose."""

    __slots__ = ("kernel", "settings")
    settings: Settings
    kernel: str

    def __new__(cls, settings: Settings, kernel: str = "") -> Carried:
        carried = super().__new__(cls, f"{settings.graph}/{kernel}" if kernel else settings.graph)
        carried.settings, carried.kernel = settings, kernel
        return carried

    def __reduce__(self) -> tuple[type[Carried], tuple[Settings, str]]:
        return Carried, (self.settings, self.kernel)


def settings_of(vllm_config: VllmConfig) -> Settings | None:
    """The settings in a configuration, or None where no circuit is configured. Raises: Unsupported."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or additional.get(KEY) is None:
        return None
    if isinstance(additional[KEY], Carried):
        return additional[KEY].settings  # type: ignore[no-any-return]
    try:
        return Settings.model_validate(additional[KEY])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Of the circuit's two forms, the one that was meant; pydantic names both.
        where = ".".join(map(str, (KEY, *first["loc"][:1])))
        raise Unsupported(f"additional_config {where}: {first['msg']}") from None
