"""What the engine must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from emovllm.circuit_files import load_circuit
from emovllm.emotion import METHODS, Emotion
from emovllm.fields import resolve
from emovllm.guards import Guard
from emovllm.phases import BITS, Automaton
from emovllm.probe import NAME as PROBE
from emovllm.probe import load_probe
from emovllm_offline.model.control import Control
from emovllm_offline.model.hooks import after, hooked
from emovllm_offline.model.load import load_network
from support.engine import Ask, Reply


class Oracle:
    """Hugging Face with hooks, in float32, one request at a time; remembers what it was asked."""

    def __init__(self, model: str, circuit: Path) -> None:
        self.circuit = load_circuit(circuit)
        self.model = load_network(model, device="cpu")
        self._control = Control(self.model, self.circuit)
        self._known: dict[str, Reply] = {}
        self._probes = load_probe(circuit) if (circuit / PROBE).is_file() else None
        self.probe = self._probes.at() if self._probes is not None else None
        # Of engines that know where a reply's phases begin and end: over their tokens, and the phases that a prompt
        # leaves open.
        self.automaton: Automaton | None = None
        self.opening: Callable[[list[int]], int] = lambda prompt: 0
        self._span = 1
        # The guards that calm.
        self.calms: list[Guard] = []

    def generate(
        self,
        asks: list[Ask],
        max_tokens: int,
        drafts: list[Reply] | None = None,
        layer: int | None = None,
        span: int = 1,
    ) -> list[Reply]:
        """Greedy replies.

        Args:
            drafts: what they are expected to be, which spares forwards where it is right.
            layer: that is read after; the probe's best by default.
            span: how many tokens of a request the engine verifies at once.
        """
        self._span = span
        if layer is not None:
            assert self._probes is not None
            self.probe = self._probes.at(layer)
        guesses = [draft.tokens for draft in drafts] if drafts else [[]] * len(asks)
        return [self._one(ask, max_tokens, guess) for ask, guess in zip(asks, guesses, strict=True)]

    def _one(self, ask: Ask, max_tokens: int, guess: list[int]) -> Reply:
        key = f"{ask} {max_tokens} {self.probe and self.probe.layer} {self._span} {self.calms}"
        if key not in self._known:
            emotion = resolve(ask.fields, self.circuit.spec, METHODS)
            if self.calms or (emotion is not None and (emotion.muted or emotion.target is not None)):
                reply = self._in_time(ask, emotion, max_tokens)
            else:
                reply = self._verified(ask, max_tokens, guess) or self._decoded(ask, max_tokens)
                reply.read = self.read(ask, reply.tokens) if "emotion_readout" in ask.fields else []
            if "emotion_readout" not in ask.fields:
                reply.read = []
            self._known[key] = reply
        return self._known[key]

    def _decoded(self, ask: Ask, max_tokens: int) -> Reply:
        emotion = resolve(ask.fields, self.circuit.spec, METHODS)
        return Reply(*self._control.generate(ask.prompt, emotion, max_tokens))

    @torch.inference_mode()
    def _in_time(self, ask: Ask, emotion: Emotion | None, max_tokens: int) -> Reply:
        """The reply where an emotion's gain depends on what was written and read: a token at a time."""
        prompt, reply, first = ask.prompt, Reply([], []), len(ask.prompt) - 1
        target = emotion.target if emotion is not None else None
        muted = sum(BITS[phase] for phase in emotion.muted) if emotion is not None else 0
        within = self.opening(ask.prompt)
        gains = [1.0]

        def steered() -> bool:
            if self.automaton is None:
                return True
            states = [self.automaton.start(within), *self.automaton.advance(self.automaton.start(within), reply.tokens)]
            return not self.automaton.spared[states[-1]] & muted

        def read(place: int, names: Iterable[str]) -> float:
            """The probability of some labels that counts at a token of the reply."""
            assert self.probe is not None
            chances = torch.tensor(reply.read[place - self._span]).softmax(-1)
            return sum(float(chances[self.probe.labels.index(name)]) for name in names)

        def calmed(place: int, guard: Guard) -> bool:
            last = range(place - guard.tokens + 1, place + 1)
            return last[0] >= self._span and all(read(each, [guard.label]) > guard.bound for each in last)

        def against(guard: Guard) -> Callable[[int], float]:
            return lambda position: float(calmed(position - first, guard))

        def gain(position: int) -> float:
            steady = held(position)
            return 0.0 if any(calmed(position - first, guard) for guard in self.calms) else steady

        def held(position: int) -> float:
            place = position - first
            if place < 0 or not steered():
                gains.extend(gains[-1:] * (place + 1 - len(gains)))
                return 0.0 if place >= 0 else 1.0
            if emotion is not None and target is not None and place >= self._span and len(gains) <= place:
                felt = read(place, [name for name, _ in emotion.weights])
                gains.append(min(max(gains[-1] + target.rate * (target.level - felt), 0.0), target.cap))
            gains.extend(gains[-1:] * (place + 1 - len(gains)))
            return gains[place]

        states: list[Tensor] = []
        hooks = [after(self._control.layer(self.probe.layer), states.append)] if self.probe is not None else []
        cache, ids = None, prompt
        with ExitStack() as injected:
            injected.enter_context(self._control.emotion(emotion, len(prompt), gain))
            for guard in self.calms:
                calm = resolve({"emotion": guard.label, "emotion_strength": -1}, self.circuit.spec)
                injected.enter_context(self._control.emotion(calm, len(prompt), against(guard)))
            injected.enter_context(hooked(hooks))
            while len(reply.tokens) < max_tokens:
                output = self._control.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                scores = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
                reply.tokens.append(int(scores.argmax()))
                reply.logprobs.append(float(scores.max()))
                if self.probe is not None:
                    reply.read.append(self.probe.logits(states[-1][0, -1:].numpy())[0].tolist())
                ids = reply.tokens[-1:]
        return reply

    def _verified(self, ask: Ask, max_tokens: int, guess: list[int]) -> Reply | None:
        """The reply, where each token of a guess is the likeliest after those before it."""
        if len(guess) != max_tokens:
            return None
        best = self.scores(ask, guess)[len(ask.prompt) - 1 : -1].max(-1)
        return Reply(guess, best.values.tolist()) if best.indices.tolist() == guess else None

    @torch.inference_mode()
    def scores(self, ask: Ask, reply: list[int]) -> Tensor:
        """Log-probabilities after each token of prompt and reply: [tokens, vocab_size]."""
        with self._control.emotion(resolve(ask.fields, self.circuit.spec, METHODS), len(ask.prompt)):
            logits = self._control.model(input_ids=torch.tensor([ask.prompt + reply])).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    @torch.inference_mode()
    def read(self, ask: Ask, reply: list[int]) -> list[list[float]]:
        """What the circuit's probe reads in the state that wrote each token of a reply: logits, [tokens, labels]."""
        assert self.probe is not None
        states: list[Tensor] = []
        layer = self._control.layer(self.probe.layer)
        with (
            self._control.emotion(resolve(ask.fields, self.circuit.spec, METHODS), len(ask.prompt)),
            hooked([after(layer, states.append)]),
        ):
            self._control.model(input_ids=torch.tensor([ask.prompt + reply[:-1]]))
        logits: list[list[float]] = self.probe.logits(states[0][0, len(ask.prompt) - 1 :].numpy()).tolist()
        return logits

    @torch.inference_mode()
    def decode(self, ask: Ask, max_tokens: int, adjust: Callable[[list[int], Tensor], Tensor], stop: int) -> list[int]:
        """Greedy tokens where `adjust(tokens so far, logits)` gives the logits to choose by. Ends after `stop`."""
        tokens: list[int] = []
        cache = None
        ids = ask.prompt
        with self._control.emotion(resolve(ask.fields, self.circuit.spec), len(ask.prompt)):
            while len(tokens) < max_tokens and stop not in tokens[-1:]:
                output = self._control.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                tokens.append(int(adjust(tokens, output.logits[0, -1].float()).argmax()))
                ids = tokens[-1:]
        return tokens
