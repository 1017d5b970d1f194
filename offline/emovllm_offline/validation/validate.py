"""Do the units that discovery chose carry the emotion? (arXiv 2510.11328, figures 2 to 5)

Sweeps of ablation and enhancement with random controls, principal components, and a linear probe. What one scenario
and event gives is appended to files as soon as it is known, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.errors import ResultsError
from emovllm.progress import track
from emovllm_offline.data import sev
from emovllm_offline.data.styles import Style, common_emotions, load_style
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.intervals import mean_interval
from emovllm_offline.model.decoder import Decoder, type_name, weights_digest
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load
from emovllm_offline.storage.journal import Journal
from emovllm_offline.storage.lock import forget
from emovllm_offline.storage.rows import Rows
from emovllm_offline.storage.settings import plain, refuse_others
from emovllm_offline.validation.plan import Plan, Settings
from emovllm_offline.validation.results import (
    FILE,
    FORMAT,
    Curve,
    Validation,
    findings_digest,
    injection_digest,
    rounded,
)
from emovllm_offline.validation.separation import separate
from emovllm_offline.validation.sweeps import MODES, SITES
from emovllm_offline.validation.trajectories import Views
from emovllm_offline.validation.variants import Protocol

logger = logging.getLogger(__name__)

PART = "validation.part"
SCORES, STATES = "scores.f32", "states.f32"
REMEDY = "give --fresh, or another --work"


def validate(
    decoder: Decoder,
    tokenizer: Any,
    findings: Findings,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    out: str | Path,
    settings: Settings = Settings(),
    circuit: Circuit | None = None,
) -> Validation:
    """Validates findings on a model, and writes `validation.json` to the folder `out`.

    The score of an emotion is the sum over layers of the projections of the residual at `last` on the layer's
    directions. `last` is the last token of a prompt: of the forced reply, as far as it is read, where a style has one.
    Principal components and probe see the states that discovery does: averaged over such a reply, otherwise at `last`.
    Neutral prompts are those of the first style. Several frames of an emotion are averaged. The sweeps are of the
    findings, whatever the circuit; where one is given, it is injected for the trajectories, as it is.

    Raises: ResultsError; StoredError where `out` holds the results of other inputs and `fresh` is false.
    """
    plan, batch_size = settings.plan, settings.batch_size
    _check(decoder, findings, records, styles, plan)
    inputs = plain(
        _inputs(decoder, findings, records, styles, plan, batch_size)
        | {"circuit": None if circuit is None else injection_digest(circuit)}
    )
    views = None if circuit is None else Views(decoder, circuit, findings)
    folder = Path(out)
    if (folder / FILE).exists() and not settings.fresh:
        finished = Validation.load(folder)
        refuse_others(folder / FILE, finished.inputs, inputs, REMEDY)
        return finished
    protocol = Protocol(decoder, tokenizer, findings, styles, plan, batch_size, views)
    items = sev.expand(records)
    store = _Store(folder / PART, inputs, protocol.sizes, settings.fresh)
    # Nothing is forgotten for a plan that cannot be followed.
    if settings.fresh:
        (folder / FILE).unlink(missing_ok=True)
    left = range(store.done, len(items))
    for index in track(left, "validation", len(items), done=store.done, unit="items", shown=settings.progress):
        store.append(*protocol.measure(items[index], index))
    result = _summarise(protocol, inputs, records, store.scores.read(), store.states.read())
    result.save(folder)
    store.remove()
    return result


def _check(
    decoder: Decoder,
    findings: Findings,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    plan: Plan,
) -> None:
    shapes = {
        "mlp_directions": (len(decoder.layers), decoder.hidden_size),
        "neurons": (len(decoder.layers), decoder.intermediate_size),
        "heads": (len(decoder.layers), decoder.num_heads),
    }
    for name, shape in shapes.items():
        if (found := getattr(findings, name).shape[1:]) != shape:
            raise ResultsError(
                f"the findings are of another model: {name} are {found} per emotion, the model's would be {shape}"
            )
    findings.require_norms(decoder)
    if set(common_emotions(styles)) != set(findings.emotions):
        raise ResultsError(
            f"the findings are of {', '.join(findings.emotions)}, "
            f"but style {styles[0].name} has {', '.join(styles[0].emotions)}"
        )
    if len(records) < 2:
        raise ResultsError(f"{len(records)} scenarios: confidence intervals need at least 2")
    if plan.seeds < 2:
        raise ResultsError(f"{plan.seeds} seeds: the random control's interval needs at least 2")


def _inputs(
    decoder: Decoder,
    findings: Findings,
    records: Sequence[sev.Record],
    styles: Sequence[Style],
    plan: Plan,
    batch_size: int,
) -> dict[str, Any]:
    """Everything that the numbers depend on, as far as a user can change it between two runs."""
    return {
        # What is measured changed with it.
        "format version": FORMAT,
        "model": weights_digest(decoder),
        "findings": findings_digest(findings),
        "data": sev.digest(records),
        "styles": [{"name": style.name, "sha256": style.digest()} for style in styles],
        "plan": asdict(plan),
        "batch_size": batch_size,
        "dtype": type_name(decoder.dtype),
        "device": decoder.device.type,
    }


class _Store:
    """Results so far: two files of float32 rows, one of each per item, in the items' order."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any], sizes: tuple[int, int], fresh: bool) -> None:
        """Raises: StoredError where the folder holds the results of other inputs."""
        self._journal = Journal(folder, inputs, name="inputs.json", files=(SCORES, STATES), remedy=REMEDY, fresh=fresh)
        self.folder = folder
        self.scores, self.states = (Rows(folder / n, size) for n, size in zip((SCORES, STATES), sizes, strict=True))
        # A run that was killed may have written the one row and not the other.
        self.done = min(self.scores.count, self.states.count)
        self.scores.keep(self.done)
        self.states.keep(self.done)

    def append(self, scores: np.ndarray, states: np.ndarray) -> None:
        self.scores.append(scores)
        self.states.append(states)

    def remove(self) -> None:
        forget(self.folder)


def _summarise(
    protocol: Protocol, inputs: dict[str, Any], records: Sequence[sev.Record], rows: np.ndarray, states: np.ndarray
) -> Validation:
    values, start = {}, 0
    # Items of one scenario are not independent: their mean is what the intervals count.
    by_scenario = rows.astype(np.float64).reshape(len(records), -1, rows.shape[1]).mean(1)
    for name, shape in protocol.shapes.items():
        size = int(np.prod(shape))
        values[name] = by_scenario[:, start : start + size].reshape(-1, *shape)
        start += size
    cube = states.reshape(-1, *protocol.states_shape)
    separation = separate(cube, len(records), [protocol.wording(index) for index in range(len(cube))])
    return Validation(
        inputs=inputs,
        emotions=list(protocol.emotions),
        items=len(rows),
        scenarios=len(records),
        elicited={site: rounded(values["elicited"].mean(0)[:, i]) for i, site in enumerate(SITES)},
        neutral={site: rounded(values["neutral"].mean(0)[i]) for i, site in enumerate(SITES)},
        curves=[curve for mode in MODES for curve in _curves(protocol, mode, values[mode])],
        components=separation.components,
        pure=separation.pure,
        explained=separation.explained,
        f1=separation.f1,
        trajectories=[] if protocol.views is None else protocol.views.summarise(values["seen"]),
    )


def _curves(protocol: Protocol, mode: str, changes: np.ndarray) -> list[Curve]:
    """changes: [scenarios, E, SITES, variants]."""
    curves = []
    for kind, by_source in protocol.unpack(changes).items():  # [scenarios, E, SITES, 1 + seeds, k]
        targeted = mean_interval(by_source[:, :, :, 0])  # three of [E, SITES, k]
        control = mean_interval(np.moveaxis(by_source[:, :, :, 1:].mean(0), 2, 0))
        for e, emotion in enumerate(protocol.emotions):
            for s, site in enumerate(SITES):
                lines = [[0.0, *rounded(values[e, s])] for values in (*targeted, *control)]
                curves.append(Curve(mode, kind, site, emotion, [0, *protocol.ks[kind]], *lines))
    return curves


def run(
    model: str | None,
    folder: str | Path,
    settings: Settings = Settings(),
    circuit: str | Path | None = None,
    *,
    progress: bool = True,
) -> Validation:
    """`emovllm validate`: loads the model and the findings of a folder, validates them and writes the results there.

    circuit: its folder; where there is none, what it does to states is left out.
    Raises: as `validate`, and FindingsError, CircuitError, DataError, StyleError, UnsupportedModelError,
        DefaultModelError, OSError.
    """

    # What can fail quickly does so before the model is loaded.
    findings = Findings.load(folder)
    injected = None
    if circuit is not None and Path(circuit).is_dir():
        injected = load_circuit(circuit)
    elif circuit is not None:
        logger.warning("%s is no circuit's folder: what the circuit does to states is left out", circuit)
    chosen = [load_style(style) for style in settings.style]
    records = sev.load_sev(settings.data)[: settings.limit]

    if findings.routed is not None:
        logger.warning(
            "the findings have neurons of routed experts, which the sweeps leave out: they are of the others alone"
        )
    loaded = load(model, settings.loading.dtype, settings.loading.device)
    decoder = find_decoder(loaded.network, injected is not None and bool(injected.experts))
    settings = replace(settings, progress=progress)
    return validate(decoder, loaded.tokenizer, findings, records, chosen, folder, settings, injected)
