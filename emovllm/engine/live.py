"""Before a worker serves: the finished model is run, and must be moved by each site and read by the read-out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from emovllm.engine import experts, injection, residual, runner_v1, runner_v2
from emovllm.engine.coefficients import Coefficients
from emovllm.engine.readout import ReadOut
from emovllm.errors import Unsupported

# Where nothing was compiled before the live check, it is this size that gets traced: Dynamo takes 1 for a constant.
_LIVE_TOKENS = 8
# Above what rounding hides beside a residual stream's values; a sum over many ranks still fits float16.
_LIVE_VALUE = 256.0
# Of a row of the read-out's buffer that nothing was written to: no probe reads it.
_UNREAD = -(2.0**100)


class LiveCheckMixin:
    """Of workers: what a request's coefficients reach, and whether the compiled model heeds it."""

    emotion_coefficients: Coefficients
    emotion_sites: list[injection.Site]
    expert_sites: list[experts.ExpertsSite]
    steered_layers: list[residual.SteeredLayer]
    read_out: ReadOut | None = None

    def _places(self) -> list[Any]:
        """All that a request's coefficients reach: sites, and layers that are steered."""
        return [*self.emotion_sites, *self.expert_sites, *self.steered_layers]

    @torch.inference_mode()
    def _check_live(self) -> None:
        """Runs the finished model with each site's vectors alone: a stale compiled graph, one that took the vectors for
        constants, or a fused kernel that goes past a projection, must not serve. Raises: Unsupported."""
        buffer = self.emotion_coefficients.buffer
        places = self._places()
        vectors = [place.layer.emotion_vectors for place in places]
        kept = [tensor.clone() for tensor in vectors]
        dead = []
        buffer[:, :1] = 1.0
        if self.steered_layers:
            buffer[:, -1] = 1.0
        try:
            for tensor in vectors:
                tensor.zero_()
            for tokens, options in self._dummy_runs():
                # In a stage without sites too: stages of a pipeline wait for each other.
                plain = self._dummy_output(tokens, options)
                self._require_read(tokens, options)
                again = self._dummy_output(tokens, options)
                noise = (again - plain).abs().nansum()
                for place, tensor in zip(places, vectors, strict=True):
                    tensor.fill_(_LIVE_VALUE)
                    if not (self._dummy_output(tokens, options) - plain).abs().nansum() > 2 * noise:
                        dead.append(place.key)
                    tensor.zero_()
        finally:
            for tensor, old in zip(vectors, kept, strict=True):
                tensor.copy_(old)
            buffer.zero_()
        if dead := list(dict.fromkeys(dead)):
            raise Unsupported(
                f"the compiled model ignores the emotion circuit at {len(dead)} of {len(vectors)} sites "
                f"({', '.join(dead[:4])}); clear vLLM's compile cache, or start with --enforce-eager"
            )

    def _require_read(self, tokens: int, options: dict[str, Any]) -> None:
        """Raises: Unsupported where a forward does not write what was read."""
        if self.read_out is None:
            return
        rows = self.read_out.buffer[:tokens]
        rows.fill_(_UNREAD)
        self._dummy_output(tokens, options)
        if self.read_out.key is not None and bool((rows == _UNREAD).any()):
            raise Unsupported(
                f"the compiled model does not write what a probe reads ({self.read_out.key}); clear vLLM's compile "
                "cache, or start with --enforce-eager"
            )

    def _dummy_runs(self) -> list[tuple[int, dict[str, Any]]]:
        """How many tokens to run, and how, so that every kind of graph is: beside those of whole decode steps there
        are pieces for all other batches."""
        runs: list[tuple[int, dict[str, Any]]] = [(_LIVE_TOKENS, {})]
        config = self.vllm_config  # type: ignore[attr-defined]
        if not config.compilation_config.cudagraph_mode.has_full_cudagraphs():
            return runs
        if not hasattr(self.model_runner, "model_state"):  # type: ignore[attr-defined]
            return [*runs, (_LIVE_TOKENS, {"uniform_decode": True})]
        # The V2 runner makes requests of one token, until there are as many as it takes.
        mixed = 2 * config.scheduler_config.max_num_seqs + 1
        if self._stateful() or mixed > config.scheduler_config.max_num_batched_tokens:
            return runs
        return [*runs, (mixed, {})]

    def _dummy_output(self, tokens: int, options: dict[str, Any]) -> torch.Tensor:
        runner = self.model_runner  # type: ignore[attr-defined]
        execute_model = runner.execute_model
        own = vars(runner).get("execute_model")
        outputs: list[Any] = []
        # The V2 runner's dummy run drops what a pipeline stage that is not the last hands on.
        runner.execute_model = lambda *args, **kwargs: outputs.append(execute_model(*args, **kwargs))
        try:
            with self._states_apart(tokens):
                output = runner._dummy_run(tokens, force_attention=True, **options)[0]
        finally:
            del runner.execute_model
            if own is not None:
                # Ours, which hands on what was read to the next stage.
                runner.execute_model = own
        output = outputs[-1] if output is None else output
        # A pipeline stage that is not the last hands on several tensors.
        parts = output.tensors.values() if hasattr(output, "tensors") else [output]
        return torch.cat([part.float().flatten() for part in parts])

    @contextmanager
    def _states_apart(self, tokens: int) -> Iterator[None]:
        """Lets each dummy request start from a state of zeros, in a block of its own, where layers keep states (Mamba,
        short convolutions): dummy requests share one block otherwise, with the keys and values of other layers too."""
        if not (stateful := self._stateful()):
            yield
            return
        runner = self.model_runner  # type: ignore[attr-defined]
        blocks_apart = runner_v2.blocks_apart if hasattr(runner, "model_state") else runner_v1.blocks_apart
        with blocks_apart(runner, tokens) as last:
            for layer in stateful:
                for state in layer.kv_cache:
                    state[: last + 1].zero_()
            yield

    def _stateful(self) -> list[Any]:
        """Layers that keep a state."""
        context = self.vllm_config.compilation_config.static_forward_context  # type: ignore[attr-defined]
        return [layer for layer in context.values() if hasattr(layer, "mamba_type")]
