"""A model with a probe of its states: what the probe reads in texts, in every layer that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.errors import ActivationError, ProbeError
from emovllm.fingerprint import LIMITS, fingerprint_distance
from emovllm.probe import Probe, load_probe
from emovllm_offline.model.decoder import Decoder, type_name, weights_digest
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import LoadedModel, load, versions
from emovllm_offline.model.options import ModelOptions
from emovllm_offline.model.spec import model_fingerprint, model_spec
from emovllm_offline.reading.prompts import Read
from emovllm_offline.reading.states import batches, states_of
from emovllm_offline.storage.checkpoint import Arrays, Checkpoint

# However its weights are rounded, a model is nearer to its fingerprint than this; another is 1 or more from it.
OTHER_MODEL = LIMITS[1].whole


@dataclass(frozen=True, slots=True)
class Reader:
    """distance: how far the weights are from those of the probe, relative: above 0 where they are rounded otherwise."""

    loaded: LoadedModel
    decoder: Decoder
    probe: Probe
    distance: float

    @classmethod
    def load(cls, model: str | None, probe: str | Path, loading: ModelOptions) -> Reader:
        """Raises: ProbeError, also where the probe is of another model; as `load`."""
        read = load_probe(probe)  # before the model, which takes longer
        return cls.of(load(model, loading.dtype, loading.device), read)

    @classmethod
    def of(cls, loaded: LoadedModel, probe: Probe) -> Reader:
        """Raises: ProbeError where the probe is of another model."""
        decoder = find_decoder(loaded.network)
        ours, theirs = model_spec(decoder, loaded.public_id), probe.spec.model
        shape = ("num_hidden_layers", "hidden_size")
        if other := [name for name in shape if getattr(ours, name) != getattr(theirs, name)]:
            told = "; ".join(f"{name} {getattr(theirs, name)}, here {getattr(ours, name)}" for name in other)
            raise ProbeError(f"the probe is of {theirs.id}, not of this model ({told}): give that model, or train one")
        measured = model_fingerprint(decoder)
        if measured.keys() != probe.fingerprint.keys():
            raise ProbeError(f"the probe is of {theirs.id}, whose projections are others: give that model")
        distance = fingerprint_distance(measured, probe.fingerprint)
        if not distance <= OTHER_MODEL:
            raise ProbeError(
                f"the probe is of {theirs.id}, not of this model: its fingerprint is {distance:.2g} away (relative), "
                f"the limit is {OTHER_MODEL}: give that model, or train one"
            )
        return cls(loaded, decoder, probe, distance)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.probe.spec.labels

    @property
    def chat(self) -> bool:
        """Whether the probe was trained on texts as users' messages."""
        return bool(self.probe.spec.provenance.get("reading", {}).get("chat", False))

    @property
    def best(self) -> int:
        """The place of the probe's own layer among its layers."""
        return self.probe.spec.layers.index(self.probe.spec.layer)

    def inputs(self) -> dict[str, Any]:
        """What decides what is read, beside the texts."""
        return {
            "model": weights_digest(self.decoder),
            "dtype": type_name(self.decoder.dtype),
            "probe": self.probe.digest,
            "versions": versions(),
        }

    def logits(
        self, texts: Sequence[Read], path: Path, settings: Mapping[str, Any], *, tokens: int, shown: bool
    ) -> np.ndarray:
        """What the probes of all layers read, float32 [texts, layers, labels].

        path: a checkpoint, from which an interrupted reading goes on. settings: JSON values that tell the texts apart
        from others. tokens: of a forward. Raises: CheckpointError, ActivationError.
        """
        spec = self.probe.spec
        arrays = Arrays({"logits": np.zeros((len(texts), len(spec.layers), len(spec.labels)), np.float32)})
        checkpoint = Checkpoint(path, {**settings, **self.inputs(), "tokens of a forward": tokens})
        # The longest first: what does not fit into memory fails at once.
        todo = batches(texts, tokens)
        for batch in checkpoint.steps(todo, arrays, "states", unit="batches", shown=shown):
            states = states_of(self.decoder, [texts[place] for place in batch])
            for at, layer in enumerate(spec.layers):
                arrays["logits"][list(batch), at] = self.probe.at(layer).logits(states[layer])
        if not np.isfinite(arrays["logits"]).all():
            raise ActivationError("the model's states are not finite: its weights are damaged, or its dtype too narrow")
        return arrays["logits"]
