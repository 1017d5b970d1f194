"""A circuit on a Hugging Face model, by forward pre-hooks: the method as published, unfolded.

This is the reference that the engine is tested against: one request at a time, the neurons' and heads' vectors added to
the inputs of the down and output projections (method section 8). What neurons of routed experts fold into is added to
the output of their block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emovllm.architectures import candidates, layer_of, parse_experts, parse_site
from emovllm.baseline import steered_layers, steering_vectors
from emovllm.circuit import Circuit
from emovllm.emotion import Emotion, first_position
from emovllm.fields import resolve
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.model.find import trunk_of
from emovllm_offline.model.generate import stop_tokens
from emovllm_offline.model.hooks import after, before, hooked


class Control:
    """Applies a circuit's emotions to `model` while `emotion()` is entered."""

    def __init__(self, model: nn.Module, circuit: Circuit) -> None:
        """Raises: ValueError where the model lacks one of the circuit's sites."""
        self.model = model
        self.circuit = circuit
        self._trunk = trunk_of(model)
        families = candidates(self._trunk.config.get_text_config().model_type)
        wanted = set(circuit.sites())
        self._sites: list[tuple[nn.Module, Tensor]] = []
        self._experts: list[tuple[nn.Module, Tensor]] = []
        for name, module in self._trunk.named_modules():
            site = parse_site(name, families)
            if site in wanted:
                delta = torch.from_numpy(circuit.site_delta(*site))  # [emotions, width]
                self._sites.append((module, delta.to(module.weight)))
            number = parse_experts(name)
            if number is not None and ("experts", number) in wanted and hasattr(module, "experts"):
                vectors = torch.from_numpy(circuit.site_delta("experts", number))  # [emotions, hidden]
                self._experts.append((module, vectors.to(next(module.parameters()).device)))
        found = len(self._sites) + len(self._experts)
        if found != len(wanted):
            raise ValueError(f"the model has {found} of the circuit's {len(wanted)} sites")
        self._layers = self._steered() if circuit.directions else []

    def _steered(self) -> list[tuple[nn.Module, Tensor]]:
        """The layers that the method `steering` acts on, and its vectors there, [emotions, hidden]."""
        layers = {number: self.layer(number) for number in steered_layers(self.circuit.spec.model.num_hidden_layers)}
        return [
            (layer, torch.from_numpy(steering_vectors(self.circuit, number)).to(next(layer.parameters()).device))
            for number, layer in layers.items()
        ]

    def layer(self, number: int) -> nn.Module:
        """A decoder layer, whose output is the residual stream. Raises: KeyError where the model has no such one."""
        names = {site[1]: layer_of(name) for name, _ in self._trunk.named_modules() if (site := parse_site(name))}
        return self._trunk.get_submodule(names[number] or "")

    @contextmanager
    def emotion(
        self,
        emotion: Emotion | Sequence[Emotion] | None,
        prompt_len: int,
        gain: Callable[[int], float] | None = None,
    ) -> Iterator[None]:
        """Injects into every forward of one sequence, or of several that are padded on the left to one length, whose
        first forward begins at position 0.

        Args:
            emotion: what to inject; one for each sequence, of one scope and method, or one for all; None for nothing.
            prompt_len: prompt tokens, padding included; the scopes count from it, but where an emotion says from where.
            gain: what the emotion at a position is multiplied by, asked when its forward comes: where it depends on
                what was written or read.
        Raises: ValueError for the method `steering` where the circuit has no directions.
        """
        if emotion is None:
            yield
            return
        emotions = [emotion] if isinstance(emotion, Emotion) else emotion
        if len({(one.scope, one.method) for one in emotions}) != 1:
            raise ValueError("the sequences have emotions of several scopes or methods")
        scope, method = emotions[0].scope, emotions[0].method
        if (start := emotions[0].start) is not None:
            if len(emotions) > 1:
                raise ValueError("emotion_from is of one sequence")
            prompt_len = start if start > 0 else prompt_len + start
        if method == "steering" and not self._layers:
            raise ValueError("the circuit has no directions to steer with")
        weights = torch.zeros(len(emotions), 1, len(self.circuit.names))
        for row, one in zip(weights, emotions, strict=True):
            for name, weight in one.weights:
                row[0, self.circuit.names.index(name)] = weight
        position = 0  # of the current forward's first token
        tokens = 0

        def count(ids: Tensor) -> None:
            nonlocal position, tokens
            position += tokens
            tokens = ids.shape[1]

        def mask(device: torch.device) -> Tensor:
            positions = torch.arange(position, position + tokens)
            inside = injected(positions, scope, prompt_len).float()
            if gain is not None:
                inside = inside * torch.tensor([gain(position) for position in positions.tolist()])
            in_reply = (positions - (prompt_len - 1)).numpy()
            # [sequences, tokens, 1]
            shares = [
                inside if one.schedule is None else inside * torch.from_numpy(one.schedule.shares(in_reply))
                for one in emotions
            ]
            return torch.stack(shares).to(device)[:, :, None]

        def inject(delta: Tensor) -> Callable[[Tensor], Tensor]:
            vector = weights.to(delta) @ delta
            return lambda values: values + mask(values.device) * vector

        def write(vectors: Tensor) -> Callable[[Tensor], Tensor]:
            vector = weights.to(vectors) @ vectors

            def change(output: Tensor) -> Tensor:
                # Some blocks give the tokens of all sequences in one row.
                rows = output.reshape(-1, tokens, output.shape[-1])
                return (rows.float() + mask(rows.device) * vector).to(output.dtype).reshape(output.shape)

            return change

        def push(vectors: Tensor) -> Callable[[Tensor], Tensor]:
            vector = weights.to(vectors) @ vectors

            def change(stream: Tensor) -> Tensor:
                rms = stream.float().square().mean(-1, keepdim=True).sqrt()
                return (stream.float() + mask(stream.device) * rms * vector).to(stream.dtype)

            return change

        hooks = [before(self.model, count, "input_ids")]
        if method == "steering":
            hooks += [after(layer, push(vectors)) for layer, vectors in self._layers]
        else:
            hooks += [before(module, inject(delta)) for module, delta in self._sites]
            hooks += [after(block, write(vectors)) for block, vectors in self._experts]
        with hooked(hooks):
            yield

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int],
        emotion: Emotion | None,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        **first: Any,
    ) -> tuple[list[int], list[float]]:
        """Greedy decoding of one prompt. first: what the model's first forward takes beside it (`pixel_values`).

        Returns: the new token ids, and the log-probability of each. Ends early after a token of `stop`.
        """
        tokens: list[int] = []
        logprobs: list[float] = []
        cache = None
        device = self._trunk.get_input_embeddings().weight.device
        ids = torch.tensor([list(prompt)], device=device)
        with self.emotion(emotion, len(prompt)):
            while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop):
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **({} if tokens else first))
                cache = output.past_key_values
                scores = torch.log_softmax(output.logits[0, -1].float(), dim=-1)
                best = int(scores.argmax())
                tokens.append(best)
                logprobs.append(float(scores[best]))
                ids = torch.tensor([[best]], device=device)
        return tokens, logprobs

    def ask(self, tokenizer: Any, message: str, max_new_tokens: int = 64, **fields: Any) -> str:
        """The model's greedy reply to one message of a user.

        fields: those of a request: `emotion` (a name, or weights by name), `emotion_strength`, `emotion_scope`,
            `emotion_schedule`.
        Raises: EmotionError, PromptError.
        """
        prompt = render(tokenizer, Frame(), message).ids
        stop = stop_tokens(self.model, tokenizer)
        tokens, _ = self.generate(prompt, resolve(fields, self.circuit.spec), max_new_tokens, stop)
        return str(tokenizer.decode(tokens, skip_special_tokens=True))


def injected(positions: Tensor, scope: str, prompt_len: int) -> Tensor:
    """Which absolute positions a scope injects (bool, like `positions`)."""
    if scope == "prompt_last":
        return positions == prompt_len - 1
    return positions >= first_position(scope, prompt_len)
