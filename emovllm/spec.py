"""What a circuit's `circuit.json` says: of which model it is, which emotions it has, how it may be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

# 2 where layers differ in what they have, 3 where there are vectors of routed experts too; whoever reads less reads all
# other circuits.
FORMAT_VERSIONS = (1, 2, 3)

Scope = Literal["generation", "prompt_last", "all"]
# Words that stand where an emotion's name may, and mean something else there.
RESERVED = {
    "none": "asks for the plain model",
    "mix": "counts blends in metrics",
    "neutral": "is what judges say of a text without an emotion",
    "all": "is the row of all emotions in tables",
}


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        message = "no emotion can be called '{name}', which {meaning}; rename it"
        raise PydanticCustomError("reserved", message, {"name": name, "meaning": RESERVED[name]})
    return name


EmotionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$"), AfterValidator(_not_reserved)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """A part of a file's JSON: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExpertsSpec(Frozen):
    """The routed experts of a layer whose neurons a circuit has, folded into vectors (`emovllm.experts`).

    count: of the experts; neurons: of each; block: the path in the layer of what the vectors are added to the output
    of, as Transformers calls it.
    """

    count: Annotated[int, Field(gt=0)]
    neurons: Annotated[int, Field(gt=0)]
    block: str


class LayerSpec(Frozen):
    """What one decoder layer has: 0 neurons or heads where a circuit cannot act on its MLP or its mixer.

    attn, mlp: the projections by their paths in the layer, whose inputs hold the heads and the neurons. The path says
        what the heads are: those of attention, of linear attention, of Mamba, or groups of a convolution's channels.
    experts: where the circuit acts on them too.
    """

    neurons: Annotated[int, Field(ge=0)]
    heads: Annotated[int, Field(ge=0)]
    head_dim: Annotated[int, Field(ge=0)]
    attn: str = ""
    mlp: str = ""
    experts: ExpertsSpec | None = None


class ModelSpec(Frozen):
    """The model that a circuit belongs to, by its dimensions (names as in a Hugging Face config).

    layers: each layer's, where they differ; the sizes above it are then the largest of all layers.
    """

    id: str
    architecture: str
    num_hidden_layers: Annotated[int, Field(gt=0)]
    hidden_size: Annotated[int, Field(gt=0)]
    intermediate_size: Annotated[int, Field(gt=0)]
    num_attention_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    vocab_size: Annotated[int, Field(gt=0)]
    layers: tuple[LayerSpec, ...] | None = None

    @model_validator(mode="after")
    def _sizes_are_those_of_the_layers(self) -> ModelSpec:
        if self.layers is None:
            return self
        if len(self.layers) != self.num_hidden_layers:
            raise ValueError(f"layers has {len(self.layers)} entries for {self.num_hidden_layers} layers")
        for name, part in (
            ("intermediate_size", "neurons"),
            ("num_attention_heads", "heads"),
            ("head_dim", "head_dim"),
        ):
            largest = max(getattr(layer, part) for layer in self.layers)
            if getattr(self, name) < largest:
                raise ValueError(f"{name} is {getattr(self, name)}, but a layer has {largest}")
        return self

    def layer(self, number: int) -> LayerSpec:
        """What a layer has."""
        if self.layers is not None:
            return self.layers[number]
        return LayerSpec(neurons=self.intermediate_size, heads=self.num_attention_heads, head_dim=self.head_dim)

    def experts(self, number: int) -> ExpertsSpec | None:
        """The routed experts of a layer, where the circuit acts on them."""
        return self.layers[number].experts if self.layers is not None else None

    @property
    def has_experts(self) -> bool:
        """Whether the circuit acts on routed experts of any layer."""
        return any(self.experts(number) for number in range(self.num_hidden_layers))

    @property
    def format_version(self) -> int:
        """The version that a circuit of this model needs."""
        if self.layers is None:
            return 1
        return 3 if self.has_experts else 2

    @property
    def units(self) -> str:
        """What a circuit can act on, in words."""
        if self.layers is None:
            heads = f"{self.num_attention_heads} heads of {self.head_dim}"
            return f"{self.intermediate_size} neurons and {heads} in each layer"
        of_each = by_projection(self.per_layer("heads"), [layer.attn for layer in self.layers])
        kinds = [in_layers(counts) + (f" ({path})" if len(of_each) > 1 else "") for path, counts in of_each.items()]
        units = f"neurons: {in_layers(self.per_layer('neurons'))}; heads: {', '.join(kinds) or 'none'}"
        if not self.has_experts:
            return units
        routed = [experts.count * experts.neurons if (experts := layer.experts) else 0 for layer in self.layers]
        return f"{units}; neurons of routed experts: {in_layers(routed)}"

    def per_layer(self, part: Literal["neurons", "heads", "head_dim"]) -> list[int]:
        """A size of each layer."""
        return [getattr(self.layer(number), part) for number in range(self.num_hidden_layers)]


def by_projection(counts: Sequence[int], paths: Sequence[str]) -> dict[str, list[int]]:
    """The units of each projection that has any, by its path: in all layers, 0 in those with another."""
    layers = list(zip(counts, paths, strict=True))
    some = dict.fromkeys(path for count, path in layers if count)
    return {one: [count if path == one else 0 for count, path in layers] for one in some}


def in_layers(counts: Sequence[int]) -> str:
    """How many units there are in how many layers, in words."""
    sizes = sorted({count for count in counts if count})
    have = sum(count > 0 for count in counts)
    if not have:
        return "none"
    where = "each of" if have == len(counts) else f"{have} of"
    return f"{' or '.join(map(str, sizes))} in {where} {len(counts)} layers"


class EmotionSpec(Frozen):
    """What a client may ask of one emotion.

    `recommended` is the lambda of method section 8 that strength 1.0 stands for; `maximal` is the largest
    |lambda| that a request may reach. `scores` are the figures by which a calibration chose `recommended`, the best of
    those it tried: no evaluation.
    """

    name: EmotionName
    recommended: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    maximal: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    scores: dict[str, Finite] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _recommended_within_maximal(self) -> EmotionSpec:
        if self.recommended > self.maximal:
            raise ValueError(f"{self.name}: recommended {self.recommended} is above maximal {self.maximal}")
        return self


class CircuitSpec(Frozen):
    """All of `circuit.json`."""

    format: Literal["emovllm-circuit"] = "emovllm-circuit"
    format_version: Literal[1, 2, 3] = 1
    model: ModelSpec
    emotions: Annotated[tuple[EmotionSpec, ...], Field(min_length=1)]
    scope: Scope = "generation"
    provenance: dict[str, Any] = Field(default_factory=dict)
    tensors_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @model_validator(mode="after")
    def _unique_names(self) -> CircuitSpec:
        names = [emotion.name for emotion in self.emotions]
        if len(set(names)) != len(names):
            raise ValueError(f"emotions are named twice: {names}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _version_of_the_content(cls, content: Any) -> Any:
        """A circuit in the making has the version that it needs; one that is read must have it."""
        model = content.get("model") if isinstance(content, dict) else None
        if isinstance(model, ModelSpec) and "format_version" not in content:
            return {**content, "format_version": model.format_version}
        return content

    @model_validator(mode="after")
    def _content_is_of_its_version(self) -> CircuitSpec:
        if (self.model.layers is not None) != (self.format_version >= 2):
            raise ValueError("model.layers belongs to format_version 2 and above, and to no other")
        if self.model.has_experts != (self.format_version == 3):
            raise ValueError("experts in model.layers belong to format_version 3, and to no other")
        return self

    def emotion(self, name: str) -> EmotionSpec:
        """Raises: KeyError."""
        for emotion in self.emotions:
            if emotion.name == name:
                return emotion
        raise KeyError(name)
