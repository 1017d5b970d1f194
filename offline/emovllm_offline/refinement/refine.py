"""Refinement, beyond the paper: a circuit's difference vectors are fitted to emotional replies.

Discovery chooses the neurons and heads and measures their mean differences (arXiv 2510.11328, sections 3 to 7). Here
these differences are where gradient descent starts from: the deltas of the circuit's own units become those under which
the unchanged model, given the neutral prompt, finds emotional replies likeliest, injected as they will be served, at
lambda 1, from the prompt's last token on. No unit is added and no weight of the model changes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.errors import RefinementError
from emovllm.progress import Bar
from emovllm.spec import EmotionSpec
from emovllm_offline.data import examples
from emovllm_offline.data.examples import Example
from emovllm_offline.data.styles import Frame, Style, load_style
from emovllm_offline.model.decoder import Decoder, type_name, weights_digest
from emovllm_offline.model.find import find_decoder
from emovllm_offline.model.load import load, versions
from emovllm_offline.model.spec import is_of
from emovllm_offline.refinement.controls import start_of
from emovllm_offline.refinement.loss import Anchor, Loss
from emovllm_offline.refinement.settings import RefineSettings, Training
from emovllm_offline.storage.checkpoint import Checkpoint
from emovllm_offline.storage.places import work_folder

CHECKPOINT = "refinement.safetensors"
# The prompts to learn under: evaluations' neutral one, and the model's own default.
FRAMES = (Frame(system="Keep the reply to at most two sentences."), Frame())


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a message is put in: neutral frames in turn, and, for the anchor, the style that asks for an emotion."""

    frames: Sequence[Frame] = FRAMES
    style: Style | None = None


def refine(
    decoder: Decoder,
    tokenizer: Any,
    circuit: Circuit,
    given: Sequence[Example],
    training: Training = Training(),
    prompts: Prompts = Prompts(),
    *,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> tuple[Circuit, list[dict[str, float]]]:
    """Fits the deltas of a circuit.

    given: with a reply in every emotion of the circuit.
    Returns: the circuit, with lambda 1 as its recommended strength, and for each epoch, the first being that of the
        discovered deltas, the mean loss per token of the held-out replies by emotion, in nats: the negative
        log-probability, and the anchor's cross-entropy in its share.
    Raises: RefinementError, PromptError.
    """
    _require_no_experts(circuit)
    held_out, learnt = _split(circuit, given, training)
    frames, style = prompts.frames, prompts.style
    decoder.model.requires_grad_(False)
    start, deltas = start_of(decoder, circuit, training)
    anchor = None
    if training.anchor:
        if style is None:
            raise RefinementError("the anchor needs a style to ask for emotions with")
        anchor = Anchor(decoder, tokenizer, circuit.names, style, {example.id: i for i, example in enumerate(given)})
    loss_of = Loss(decoder, tokenizer, circuit.names, deltas, anchor, training.anchor)
    fit = _Fit(deltas.theta, training.learning_rate)
    steps = -(-len(learnt) // training.batch)
    total = training.epochs * steps

    def measure() -> None:
        with torch.no_grad():
            fit.record(torch.stack([loss_of(example, frames[i % len(frames)]) for i, example in enumerate(held_out)]))

    done = 0
    if checkpoint is not None:
        arrays, done = checkpoint.load()
        if arrays:
            fit.restore(arrays, done)
    if not fit.history:
        measure()
    with Bar("refinement", total, done=done, unit="steps", shown=progress) as bar:
        for step in range(done, total):
            epoch, at = divmod(step, steps)
            order = random.Random(f"{training.seed} {epoch}").sample(range(len(learnt)), len(learnt))
            batch = order[at * training.batch : (at + 1) * training.batch]
            fit.adam.param_groups[0]["lr"] = training.learning_rate * (1 - step / total)
            fit.adam.zero_grad()
            for i in batch:
                loss = loss_of(learnt[i], frames[(i + epoch) % len(frames)]).mean() / len(batch)
                loss.backward()
            fit.adam.step()
            if at == steps - 1:
                measure()
            bar.advance(note=f"held out {np.mean(fit.history[-1]):.3f}")
            if checkpoint is not None:
                checkpoint.save(fit.arrays(), step + 1, always=step == total - 1)
    with torch.no_grad():
        deltas.theta.copy_(fit.best)
    neurons, heads = deltas.components(start)
    spec = circuit.spec.model_copy(update={"emotions": tuple(EmotionSpec(name=name) for name in circuit.names)})
    refined = Circuit.fingerprinted(spec, neurons, heads, decoder.projection, circuit.directions)
    return refined, [dict(zip(circuit.names, row, strict=True)) for row in fit.history]


def _require_no_experts(circuit: Circuit) -> None:
    if circuit.experts:
        raise RefinementError(
            "the circuit adds constant vectors of routed experts, which are not fitted: give one that was discovered "
            "without --experts"
        )


def _split(circuit: Circuit, given: Sequence[Example], training: Training) -> tuple[list[Example], list[Example]]:
    """The messages held out, and those learnt from."""
    held_out = [example for example in given if example.held_out] or list(given[:: training.held_out])
    learnt = [example for example in given if example not in held_out]
    if not learnt or not held_out:
        raise RefinementError(f"{len(given)} messages are too few to learn from and to measure by")
    if circuit.spec.scope != "generation":
        raise RefinementError(f"the circuit's scope is {circuit.spec.scope}: only `generation` is fitted")
    return held_out, learnt


class _Fit:
    """The state of a training: the deltas, Adam's moments, the held-out losses so far, and the best deltas by them."""

    def __init__(self, theta: Tensor, learning_rate: float) -> None:
        self.theta = theta
        self.adam = torch.optim.Adam([theta], lr=learning_rate)
        self.best = theta.detach().clone()
        self.history: list[list[float]] = []  # [epochs + 1][emotions]

    def record(self, losses: Tensor) -> None:
        """losses: of the held-out messages, [messages, emotions]."""
        self.history.append(losses.mean(0).tolist())
        if np.mean(self.history[-1]) <= min(map(np.mean, self.history)):
            self.best = self.theta.detach().clone()

    def arrays(self) -> dict[str, Any]:
        """All that training goes on from."""
        state = self.adam.state[self.theta]
        tensors = {
            "theta": self.theta.detach(),
            "best": self.best,
            "mean": state["exp_avg"],
            "square": state["exp_avg_sq"],
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} | {"history": np.array(self.history)}

    def restore(self, arrays: dict[str, Any], steps: int) -> None:
        self.best = torch.from_numpy(arrays["best"]).to(self.best)
        self.history = arrays["history"].tolist()
        with torch.no_grad():
            self.theta.copy_(torch.from_numpy(arrays["theta"]))
        self.adam.state[self.theta] = {
            "step": torch.tensor(float(steps)),
            "exp_avg": torch.from_numpy(arrays["mean"].copy()).to(self.theta),
            "exp_avg_sq": torch.from_numpy(arrays["square"].copy()).to(self.theta),
        }


def run(
    model: str | None,
    circuit: str | Path,
    out: str | Path,
    settings: RefineSettings = RefineSettings(),
    training: Training = Training(),
    *,
    command: str = "",
    progress: bool = True,
) -> Circuit:
    """`emovllm refine`: loads model, circuit and replies, fits the deltas and writes the refined circuit.

    Raises: as `refine`, and ExamplesError, CheckpointError, DefaultModelError, CircuitError, OSError.
    """

    found = examples.load_examples(settings.replies)[: settings.limit]
    given = load_circuit(circuit)
    _require_no_experts(given)
    examples.require_emotions(found, given.names)
    chosen = load_style(settings.anchor_style)
    if training.anchor and (missing := [name for name in given.names if name not in chosen.emotions]):
        raise RefinementError(f"style {chosen.name} has no {', '.join(missing)}")
    place = settings.work or work_folder(out)
    if settings.fresh:
        (place / CHECKPOINT).unlink(missing_ok=True)
    loaded = load(model, settings.loading.dtype, settings.loading.device)
    decoder = find_decoder(loaded.network)
    check_model(given, decoder)
    about = {
        "replies": examples.digest(found),
        "messages": len(found),
        **asdict(training),
        "dtype": type_name(decoder.dtype),
    }
    if training.anchor:
        about["style"] = chosen.digest()
    checkpoint = Checkpoint(
        place / CHECKPOINT, {"model": weights_digest(decoder), "circuit": given.digest(), "training": about}
    )
    refined, history = refine(
        decoder,
        loaded.tokenizer,
        given,
        found,
        training,
        Prompts(style=chosen),
        checkpoint=checkpoint,
        progress=progress,
    )
    provenance = {name: value for name, value in given.spec.provenance.items() if name != "calibration"}
    made = {
        "command": command,
        **about,
        "from": given.digest(),
        "held-out loss": [{name: round(value, 4) for name, value in row.items()} for row in history],
        "versions": versions(),
    }
    # What was refined before keeps its entry.
    provenance["refinements"] = [*provenance.get("refinements", []), made]
    refined = replace(refined, spec=refined.spec.model_copy(update={"provenance": provenance}))
    save_circuit(refined, out)
    return refined


def check_model(circuit: Circuit, decoder: Decoder) -> None:
    """Raises: RefinementError where the circuit is of another model."""
    if not is_of(circuit, decoder):
        raise RefinementError(f"the circuit is of another model ({circuit.spec.model.id})")
