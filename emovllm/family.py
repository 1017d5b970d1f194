"""What a row of the table of families says (`emovllm.architectures`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["attn", "mlp"]
# tests: a tiny model equals Hugging Face with hooks in every run of the tests. once: it did when tried, and is like
# others to the engine. sites: vLLM computes it on no CPU in float32, or in no environment of a CPU, and its sites are
# found in vLLM's class. none: vLLM has no class that computes it.
Served = Literal["tests", "once", "sites", "none"]


@dataclass(frozen=True, slots=True)
class Mixer:
    """What stands in the place of attention in some layers: linear attention, Mamba, a short convolution.

    projection: the linear layer at its end, on whose input a circuit acts as on that of attention. What a mixer keeps
        from token to token is made before it, and so is the same whatever is added there.
    heads: the setting that says of how many heads that input is. A convolution has none, and its channels do not
        mingle: they are taken in as many groups as attention has heads, so that a unit is as wide in all layers.
    in_vllm: what the projection is called there, where that differs.
    """

    projection: str
    heads: str = "num_attention_heads"
    in_vllm: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """How the decoder layers of a family are built. Modules are named by their path inside a layer, which Transformers
    and vLLM share; settings are those of Transformers' text configuration.

    A layer without output norms computes a = s A(x), x1 = x + a, m = s M(x1), x + a + m; a parallel one m = s M(x).

    model_type: its name in config.json.
    attn, mlp: the projections whose inputs a circuit acts on, in layers that have them.
    shared: the projection that stands for `mlp` in layers of experts, where all tokens go through a shared one.
    experts: the module of such layers whose output is what their MLP adds. A circuit may add vectors there, into which
        neurons of the routed experts are folded.
    experts_in_vllm: what that is called there, where it differs.
    no_experts: why discovery leaves out the routed experts' neurons, where it does.
    mixers: what other layers have in the place of attention; their sites are of the kind `attn`, too.
    beside: the module of experts whose output is added to that of `mlp`, in the models that have it.
    beside_attn: a module that writes to the residual along with attention, in every layer, and the setting that its
        output is multiplied by; no circuit acts on it.
    attn_in_vllm: what `attn` is called there, where that differs.
    alone: whether each layer is one sublayer alone: attention or what is in its place, or an MLP, or experts.
    before_mlp: the module whose input is the residual between attention and MLP, where they are sequential.
    attn_norm, mlp_norm: norms of a sublayer's output, where it is the norm's output that reaches the residual.
    parallel: whether attention and MLP read the same residual, or the settings of which any one makes them do so.
    alibi: whether positions are read off the attention mask, which has two dimensions then, or the settings that do so.
    scale: the setting by which a sublayer's output is multiplied before it is added, or that of attention and that of
        the MLP; `name.1` is the second number of a list.
    name: for people. served: how it is known that the engine serves it exactly. not_discovered: why discovery refuses.
    """

    model_type: str
    attn: str = "self_attn.o_proj"
    mlp: str | None = "mlp.down_proj"
    shared: str | None = None
    experts: str | None = None
    experts_in_vllm: str | None = None
    no_experts: str = ""
    mixers: tuple[Mixer, ...] = ()
    beside: str | None = None
    beside_attn: tuple[str, str] | None = None
    attn_in_vllm: str | None = None
    alone: bool = False
    before_mlp: str = "post_attention_layernorm"
    attn_norm: str | None = None
    mlp_norm: str | None = None
    parallel: bool | tuple[str, ...] = False
    alibi: bool | tuple[str, ...] = False
    scale: str | tuple[str, str] | None = None
    name: str = ""
    served: Served = "tests"
    not_discovered: str = ""

    @property
    def projections(self) -> dict[Kind, tuple[str, ...]]:
        """The paths that each kind of site may have in a layer."""
        of_mixers = (path for mixer in self.mixers for path in (mixer.projection, mixer.in_vllm))
        return {
            "attn": tuple(filter(None, (self.attn, self.attn_in_vllm, *of_mixers))),
            "mlp": tuple(filter(None, (self.mlp, self.shared))),
        }

    def heads_setting(self, path: str) -> str:
        """The setting that says how many heads an `attn` projection takes."""
        return next((mixer.heads for mixer in self.mixers if mixer.projection == path), "num_attention_heads")

    def is_parallel(self, config: Any) -> bool:
        return _holds(self.parallel, config)

    def has_alibi(self, config: Any) -> bool:
        return _holds(self.alibi, config)

    def scales(self, config: Any) -> tuple[float, float]:
        """What the outputs of attention and of the MLP are multiplied by."""
        of_attn, of_mlp = self.scale if isinstance(self.scale, tuple) else (self.scale, self.scale)
        return factor(of_attn, config), factor(of_mlp, config)


def _holds(rule: bool | tuple[str, ...], config: Any) -> bool:
    return rule if isinstance(rule, bool) else any(getattr(config, setting, False) for setting in rule)


def factor(setting: str | None, config: Any) -> float:
    """The number that a setting says, as in `Family.scale`; 1 where there is none."""
    name, _, place = (setting or "").partition(".")
    value = getattr(config, name, None)
    if value is None:
        return 1.0
    return float(value[int(place)] if place else value)
