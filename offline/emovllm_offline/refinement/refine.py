"""Refinement, beyond the paper: a circuit's difference vectors are fitted to emotional replies.

Discovery chooses the neurons and heads and measures their mean differences (arXiv 2510.11328, sections 3 to 7). Here
these differences are where gradient descent starts from: the deltas of the circuit's own units become those under which
the unchanged model, given the neutral prompt, finds emotional replies likeliest, injected as they will be served, at
lambda 1, from the prompt's last token on. No unit is added and no weight of the model changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import emovllm
from emovllm.circuit import Circuit, Components, EmotionSpec, fingerprint_distance, measure_fingerprint
from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.errors import RefinementError
from emovllm.models import resolve_model
from emovllm.progress import Bar
from emovllm_offline.data import examples
from emovllm_offline.data.examples import Example
from emovllm_offline.data.prompts import messages, render
from emovllm_offline.data.styles import DEFAULT_STYLES, Frame, Style, load_style
from emovllm_offline.discovery.findings import work_folder
from emovllm_offline.model.decoder import Decoder, find_decoder, repeat_cache, weights_digest
from emovllm_offline.model.generate import stop_tokens
from emovllm_offline.storage.checkpoint import Checkpoint

CHECKPOINT = "refinement.safetensors"
# The prompts to learn under: evaluations' neutral one, and the model's own default.
FRAMES = (Frame(system="Keep the reply to at most two sentences."), Frame())
# Weights in half precision are within a hundredth of the circuit's fingerprint, another model's far off.
FINGERPRINT_TOLERANCE = 0.05
# Of the anchor's predictions, the likeliest.
ANCHOR_TOKENS = 50


@dataclass(frozen=True, slots=True)
class Training:
    """How the deltas are fitted.

    start: lambda at which the discovered deltas enter. learning_rate: of Adam, in units of the root mean square of a
    site's discovered deltas; it falls linearly to zero. batch: messages a step, each with all its replies. held_out:
    one message in so many is not learnt from, but measures each epoch; the best epoch is kept. anchor: from 0 to
    1, the share of the plain model's own word in the loss: at every token of a reply the steered model is to predict
    what the plain one does when its prompt asks for the emotion, which keeps replies fluent.
    """

    epochs: int = 4
    batch: int = 4
    learning_rate: float = 0.1
    start: float = 1.0
    held_out: int = 10
    anchor: float = 0.0
    seed: int = 0


class Deltas:
    """The deltas of a circuit's units as one vector `theta`, each in units of its site's root mean square."""

    def __init__(self, decoder: Decoder, circuit: Circuit, start: float) -> None:
        self._sites = []
        values = []
        modules = {
            "attn": [layer.o_proj for layer in decoder.layers],
            "mlp": [layer.down_proj for layer in decoder.layers],
        }
        ones = replace(circuit, neurons=_ones(circuit.neurons), heads=_ones(circuit.heads))
        at = 0
        for kind, layer in circuit.sites():
            delta = circuit.site_delta(kind, layer)  # [emotions, width]
            where = np.nonzero(ones.site_delta(kind, layer))
            initial = delta[where] * start
            scale = float(np.sqrt(np.square(initial).mean())) or 1.0
            part = slice(at, at + len(initial))
            at += len(initial)
            index = tuple(torch.from_numpy(i).to(decoder.device) for i in where)
            self._sites.append((kind, layer, modules[kind][layer], delta.shape, index, part, scale))
            values.append(initial / scale)
        flat = torch.from_numpy(np.concatenate(values).astype(np.float32))
        self.theta = flat.to(decoder.device).requires_grad_()

    def by_module(self) -> Iterator[tuple[Any, Tensor]]:
        """Each projection with what is added to its input, [emotions, width]."""
        for _, _, module, shape, index, part, scale in self._sites:
            yield module, torch.zeros(shape, device=self.theta.device).index_put(index, self.theta[part] * scale)

    @contextmanager
    def injected(self, emotions: Tensor) -> Iterator[None]:
        """Adds the deltas at every token of the forwards inside the block; emotions: that of each row."""
        handles = []

        def inject(delta: Tensor) -> Any:
            rows = delta[emotions][:, None]  # [rows, 1, width]
            return lambda module, args: (args[0] + rows.to(args[0].dtype), *args[1:])

        try:
            for module, delta in self.by_module():
                handles.append(module.register_forward_pre_hook(inject(delta)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def components(self, circuit: Circuit) -> tuple[dict[str, Components], dict[str, Components]]:
        """The circuit's neurons and heads with the present deltas."""
        dense = {}
        for (kind, layer, *_), (_, delta) in zip(self._sites, self.by_module(), strict=True):
            dense[kind, layer] = delta.detach().cpu().numpy()
        model = circuit.spec.model

        def taken(kind: str, units: Components, e: int) -> Components:
            if not len(units):
                return units
            width = model.head_dim if kind == "attn" else 1
            rows = [
                dense[kind, int(layer)][e].reshape(-1, width)[index]
                for layer, index in zip(units.layer, units.index, strict=True)
            ]
            delta = np.stack(rows).astype(np.float32)
            return Components(units.layer, units.index, delta if kind == "attn" else delta[:, 0])

        names = list(enumerate(circuit.names))
        neurons = {name: taken("mlp", circuit.neurons[name], e) for e, name in names}
        return neurons, {name: taken("attn", circuit.heads[name], e) for e, name in names}


def _ones(units: Any) -> dict[str, Components]:
    return {name: Components(u.layer, u.index, np.ones_like(u.delta)) for name, u in units.items()}


def refine(
    decoder: Decoder,
    tokenizer: Any,
    circuit: Circuit,
    given: Sequence[Example],
    frames: Sequence[Frame],
    training: Training = Training(),
    *,
    style: Style | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> tuple[Circuit, list[dict[str, float]]]:
    """Fits the deltas of a circuit.

    given: with a reply in every emotion of the circuit; frames: neutral ones, which the messages take in turn;
    style: how the anchor's prompts ask for an emotion.
    Returns: the circuit, with lambda 1 as its recommended strength, and for each epoch, the first being that of the
        discovered deltas, the mean loss per token of the held-out replies by emotion, in nats: the negative
        log-probability, and the anchor's cross-entropy in its share.
    Raises: RefinementError, PromptError.
    """
    held_out = list(given[:: training.held_out]) if training.held_out else []
    learnt = [example for example in given if example not in held_out]
    if not learnt or not held_out:
        raise RefinementError(f"{len(given)} messages are too few to learn from and to measure by")
    if circuit.spec.scope != "generation":
        raise RefinementError(f"the circuit's scope is {circuit.spec.scope}: only `generation` is fitted")
    if training.anchor and style is None:
        raise RefinementError("the anchor needs a style to ask for emotions with")
    decoder.model.requires_grad_(False)
    deltas = Deltas(decoder, circuit, training.start)
    anchor = None
    if training.anchor and style is not None:
        anchor = _Anchor(decoder, tokenizer, circuit.names, style, {example.id: i for i, example in enumerate(given)})
    loss_of = _Loss(decoder, tokenizer, circuit.names, deltas, anchor, training.anchor)
    adam = torch.optim.Adam([deltas.theta], lr=training.learning_rate)
    steps = -(-len(learnt) // training.batch)
    total = training.epochs * steps
    history: list[list[float]] = []
    best = deltas.theta.detach().clone()

    def measure() -> None:
        nonlocal best
        with torch.no_grad():
            rows = torch.stack([loss_of(example, frames[i % len(frames)]) for i, example in enumerate(held_out)])
        history.append(rows.mean(0).tolist())
        if np.mean(history[-1]) <= min(map(np.mean, history)):
            best = deltas.theta.detach().clone()

    done = 0
    if checkpoint is not None:
        arrays, done = checkpoint.load()
        if arrays:
            best = torch.from_numpy(arrays["best"]).to(best)
            history = arrays["history"].tolist()
            _restore(adam, deltas.theta, arrays, done)
    if not history:
        measure()
    with Bar("refinement", total, done=done, unit="steps", shown=progress) as bar:
        for step in range(done, total):
            epoch, at = divmod(step, steps)
            order = random.Random(f"{training.seed} {epoch}").sample(range(len(learnt)), len(learnt))
            chosen = order[at * training.batch : (at + 1) * training.batch]
            adam.param_groups[0]["lr"] = training.learning_rate * (1 - step / total)
            adam.zero_grad()
            for i in chosen:
                loss = loss_of(learnt[i], frames[(i + epoch) % len(frames)]).mean() / len(chosen)
                loss.backward()
            adam.step()
            if at == steps - 1:
                measure()
            bar.advance(note=f"held out {np.mean(history[-1]):.3f}")
            if checkpoint is not None:
                arrays = _arrays(adam, deltas.theta, best, history)
                checkpoint.save(arrays, step + 1, always=step == total - 1)
    with torch.no_grad():
        deltas.theta.copy_(best)
    neurons, heads = deltas.components(circuit)
    spec = circuit.spec.model_copy(update={"emotions": tuple(EmotionSpec(name=name) for name in circuit.names)})
    refined = Circuit.fingerprinted(spec, neurons, heads, decoder.projection, circuit.directions)
    return refined, [dict(zip(circuit.names, row, strict=True)) for row in history]


class _Anchor:
    """What the plain model predicts at each token of a reply when the prompt asks for its emotion."""

    def __init__(
        self, decoder: Decoder, tokenizer: Any, emotions: Sequence[str], style: Style, numbers: dict[str, int]
    ) -> None:
        """numbers: which of the style's prompts a message takes, by its id."""
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._emotions = emotions
        self._style = style
        self._numbers = numbers
        self._known: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, example: Example, replies: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """For each reply the likeliest tokens, [tokens, k], and their share of the probability of these k."""
        if example.id not in self._known:
            self._known[example.id] = [
                self._predict(example, name, reply) for name, reply in zip(self._emotions, replies, strict=True)
            ]
        return self._known[example.id]

    @torch.no_grad()
    def _predict(self, example: Example, name: str, reply: Sequence[int]) -> tuple[Tensor, Tensor]:
        frame = self._style.frames(name, self._numbers[example.id])[0].model_copy(update={"reply": None})
        prompt = render(self._tokenizer, frame, example.user).ids
        ids = torch.tensor([[*prompt, *reply[:-1]]], device=self._decoder.device)
        logits = self._decoder.model(input_ids=ids, use_cache=False, logits_to_keep=len(reply)).logits[0]
        values, tokens = logits.float().topk(min(ANCHOR_TOKENS, logits.shape[-1]))
        return tokens, values.softmax(-1)


class _Loss:
    """How far the steered model is from replying as an example does."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        emotions: Sequence[str],
        deltas: Deltas,
        anchor: _Anchor | None,
        share: float,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._emotions = emotions
        self._deltas = deltas
        self._anchor = anchor
        self._share = share

    def __call__(self, example: Example, frame: Frame) -> Tensor:
        """Mean per token of the reply in each emotion, its end included: [emotions].

        The prompt but for its last token is not injected, so that all emotions share its keys and values.
        """
        device = self._decoder.device
        prompt = render(self._tokenizer, frame, example.user).ids
        end = end_of_turn(self._decoder.model, self._tokenizer, frame, example.user)
        replies = [
            [*self._tokenizer(example.replies[name], add_special_tokens=False)["input_ids"], *end]
            for name in self._emotions
        ]
        longest = max(map(len, replies))
        # Padding comes last, where a causal model lets nothing see it.
        ids = torch.tensor(
            [[prompt[-1], *reply[:-1], *[0] * (longest - len(reply))] for reply in replies], device=device
        )
        with torch.no_grad():
            cache = self._decoder.prefix_cache(prompt[:-1])
        positions = torch.arange(len(prompt) - 1, len(prompt) - 1 + longest, device=device)[None]
        with self._deltas.injected(torch.arange(len(replies), device=device)):
            logits = self._decoder.model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=repeat_cache(cache, len(replies)),
                use_cache=True,
            ).logits
        anchors = self._anchor(example, replies) if self._anchor else [None] * len(replies)
        losses = [self._of(row, reply, anchor) for row, reply, anchor in zip(logits, replies, anchors, strict=True)]
        return torch.stack(losses)

    def _of(self, logits: Tensor, reply: Sequence[int], anchor: tuple[Tensor, Tensor] | None) -> Tensor:
        scores = logits[: len(reply)].float().log_softmax(-1)  # [tokens, vocabulary]
        loss = -scores.gather(1, torch.tensor(reply, device=scores.device)[:, None]).mean()
        if anchor is None:
            return loss
        tokens, shares = anchor
        theirs = -(shares * scores.gather(1, tokens)).sum(-1).mean()
        return (1 - self._share) * loss + self._share * theirs


def end_of_turn(model: Any, tokenizer: Any, frame: Frame, user: str) -> list[int]:
    """The token with which the chat template ends a reply; empty where none of the model's stop tokens does."""
    chat = [*messages(frame, user, merge_system=True), {"role": "assistant", "content": "Yes."}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    stops = stop_tokens(model, tokenizer)
    return next(([token] for token in reversed(ids) if token in stops), [])


def _arrays(adam: torch.optim.Adam, theta: Tensor, best: Tensor, history: Sequence[Sequence[float]]) -> dict[str, Any]:
    """All that training goes on from."""
    state = adam.state[theta]
    tensors = {"theta": theta.detach(), "best": best, "mean": state["exp_avg"], "square": state["exp_avg_sq"]}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} | {"history": np.array(history)}


def _restore(adam: torch.optim.Adam, theta: Tensor, arrays: dict[str, Any], steps: int) -> None:
    with torch.no_grad():
        theta.copy_(torch.from_numpy(arrays["theta"]))
    adam.state[theta] = {
        "step": torch.tensor(float(steps)),
        "exp_avg": torch.from_numpy(arrays["mean"].copy()).to(theta),
        "exp_avg_sq": torch.from_numpy(arrays["square"].copy()).to(theta),
    }


def run(
    model: str | None,
    circuit: str | Path,
    out: str | Path,
    replies: str | Path = examples.DEFAULT,
    *,
    training: Training = Training(),
    style: str = DEFAULT_STYLES[0],
    dtype: str = "float32",
    device: str = "cpu",
    limit: int | None = None,
    work: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: bool = True,
) -> Circuit:
    """`emovllm refine`: loads model, circuit and replies, fits the deltas and writes the refined circuit.

    work: folder of the checkpoint, `<out>.work` by default; an interrupted run goes on there, unless `fresh`.
    Raises: as `refine`, and ExamplesError, CheckpointError, DefaultModelError, CircuitError, OSError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = examples.load_examples(replies)[:limit]
    given = load_circuit(circuit)
    examples.require_emotions(found, given.names)
    chosen = load_style(style)
    if training.anchor and (missing := [name for name in given.names if name not in chosen.emotions]):
        raise RefinementError(f"style {chosen.name} has no {', '.join(missing)}")
    place = Path(work) if work is not None else work_folder(out)
    if fresh:
        (place / CHECKPOINT).unlink(missing_ok=True)
    folder = resolve_model(model)
    transformers.logging.disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    decoder = find_decoder(network)
    _agree(given, decoder)
    about = {"replies": examples.digest(found), "messages": len(found), **asdict(training), "dtype": dtype}
    if training.anchor:
        about["style"] = chosen.digest()
    checkpoint = Checkpoint(
        place / CHECKPOINT, {"model": weights_digest(decoder), "circuit": given.digest(), "training": about}
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refined, history = refine(
        decoder, tokenizer, given, found, FRAMES, training, style=chosen, checkpoint=checkpoint, progress=progress
    )
    versions = {"emovllm": emovllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    provenance = {name: value for name, value in given.spec.provenance.items() if name != "calibration"}
    made = {
        "command": command,
        **about,
        "from": given.digest(),
        "held-out loss": [{name: round(value, 4) for name, value in row.items()} for row in history],
        "versions": versions,
    }
    # What was refined before keeps its entry.
    provenance["refinements"] = [*provenance.get("refinements", []), made]
    refined = replace(refined, spec=refined.spec.model_copy(update={"provenance": provenance}))
    save_circuit(refined, out)
    return refined


def _agree(circuit: Circuit, decoder: Decoder) -> None:
    """Raises: RefinementError where the circuit is of another model."""
    model = circuit.spec.model
    shape = (model.num_hidden_layers, model.intermediate_size, model.num_attention_heads, model.head_dim)
    theirs = (len(decoder.layers), decoder.intermediate_size, decoder.num_heads, decoder.head_dim)
    if shape == theirs:
        measured = measure_fingerprint(circuit, decoder.projection)
        if fingerprint_distance(measured, circuit.fingerprint) < FINGERPRINT_TOLERANCE:
            return
    raise RefinementError(f"the circuit is of another model ({model.id})")
