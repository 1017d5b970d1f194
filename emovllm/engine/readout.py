"""The read-out in a worker: a hook after the probe's layer writes what it reads in every row of a batch to a buffer,
inside of the compiled graph; the rows that the sampler reads go to the host with the tokens.

Only where the settings ask for it; without, no layer is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.logger import init_logger

from emovllm.emotion import KEY
from emovllm.engine.fold import fold
from emovllm.engine.injection import find, measure
from emovllm.engine.layers import DecoderLayer, decoder_layers, parts
from emovllm.engine.patching import patches
from emovllm.errors import Unsupported
from emovllm.fingerprint import require_same_weights
from emovllm.probe import LayerProbe, Probe, mark

logger = init_logger("vllm.emovllm")

# The rows of a batch among what a stage of a pipeline hands on to the next.
PASSED = "emovllm_readout"


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read in one step, on its way from a worker to the scheduler, by request.

    logits: float32 [rows, labels]. starts: the first row of each request that asked; its rows are as many as its
        tokens of this step.
    """

    logits: np.ndarray
    starts: dict[str, int]

    def of(self, req_id: str, tokens: int) -> np.ndarray | None:
        """[tokens, labels]; None where the request did not ask."""
        start = self.starts.get(req_id)
        return None if start is None else self.logits[start : start + tokens]


class ReadOut:
    """`buffer`: float32 [rows, labels] on the device, row i of the batch's token i; its address never changes.

    broken: why nothing can be read any more, if so.
    """

    def __init__(self, model: nn.Module, probe: Probe, layer: int | None, rows: int, bits: int | None) -> None:
        """Before anything is added in the model, whose weights are held to the probe's fingerprint.

        Args:
            layer: that is read after; the probe's best by default.
            rows: as many as a forward may have tokens.
            bits: of quantised weights, where it is known.
        Raises: Unsupported.
        """
        self._model, self._probe, self._at = model, probe, probe.at(layer)
        self._device = next(model.parameters()).device
        self.buffer = torch.zeros(rows, len(probe.spec.labels), device=self._device)
        wanted = {(kind, int(number)) for kind, _, number in (key.partition(".") for key in probe.fingerprint)}
        self._sites = find(model, wanted, bits)
        self._layer: DecoderLayer | None = None
        self._asking: set[str] = set()
        self._batch: tuple[Tensor, dict[str, int]] | None = None
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.broken: str | None = None
        self.recognise()

    def recognise(self) -> None:
        """Holds the weights to the probe's fingerprint; again after they were reloaded. Raises: Unsupported."""
        folded = [
            fold(site.key, site.layer, site.apply, site.own(mark(site.layer.input_size)), self._device)
            for site in self._sites
        ]
        measured = measure(self._sites, folded)
        try:
            if warning := require_same_weights(measured, self._probe.fingerprint, self._probe.spec, "probe"):
                logger.warning(warning)
        except Unsupported as error:
            self.broken = str(error)
            raise
        self.broken = None

    def install(self) -> None:
        """Hooks the layer, where this rank holds it: after the hooks that steer, for what is read is what the next one
        gets. Raises: Unsupported."""
        for layer in decoder_layers(self._model, {self._at.layer}):
            self._layer = layer
            _install(layer, self._at, self.buffer)

    @property
    def key(self) -> str | None:
        """Of the layer, where this rank holds it: of the stages of a pipeline, one does."""
        return f"readout.{self._layer.number}" if self._layer is not None else None

    def join(self, req_id: str, asks: bool) -> None:
        """Takes a request up, whose read-out is asked for or not. Raises: RuntimeError where it is, while `broken`."""
        self._asking.discard(req_id)
        if asks:
            if self.broken:
                raise RuntimeError(self.broken)
            self._asking.add(req_id)

    def leave(self, req_id: str) -> None:
        """Forgets a request, if it is known."""
        self._asking.discard(req_id)

    def prepare(self, req_ids: Sequence[str], sampled: Tensor, counts: np.ndarray | None) -> None:
        """Notes the rows of the next forward that the sampler will read.

        Args:
            sampled: int [rows], their indices in the batch, request after request.
            counts: int [requests], how many each has (drafts are verified by a row each); None where each has one.
        """
        self._batch = None
        if not self._asking:
            return
        starts = range(len(req_ids)) if counts is None else (np.cumsum(counts) - counts).tolist()
        asking = {req_id: start for req_id, start in zip(req_ids, starts, strict=True) if req_id in self._asking}
        if asking:
            self._batch = sampled, asking

    def take(self) -> Pending | None:
        """What was read in the forward that was prepared last, where anybody asked. Nobody waits for it here."""
        batch, self._batch = self._batch, None
        if batch is None:
            return None
        sampled, starts = batch
        return Pending(self.buffer[sampled.long()], starts, self._copies)

    def follow(self, runner: Any) -> None:
        """Has this runner's forwards hand on what was read, where there are several stages of a pipeline."""
        runner.emotion_read_out = self
        stages.install(on=runner)

    def run_stage(self, run: Callable[[Any], Any], received: Any, tokens: int) -> Any:
        """Runs a stage of a pipeline, the only one or one of several: what was read in a stage before is taken out of
        what that one handed on, and handed on with what this one does.

        Args:
            run: the stage's forward, of what it received.
            received: vLLM's IntermediateTensors, or None.
            tokens: of the batch, without padding.
        """
        read = received.tensors.pop(PASSED, None) if received is not None else None
        if read is not None:
            self.buffer[: len(read)].copy_(read, non_blocking=True)
        output = run(received)
        if (tensors := getattr(output, "tensors", None)) is not None and (read is not None or self._layer is not None):
            tensors[PASSED] = self.buffer[:tokens].clone()
        return output


@patches(
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner.execute_model",
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner.execute_model",
)
def stages(
    execute_model: Callable[..., Any],
    runner: Any,
    scheduler_output: Any,
    intermediate_tensors: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Of either runner: between the stages of a pipeline, what was read is handed on."""
    return runner.emotion_read_out.run_stage(
        lambda tensors: execute_model(runner, scheduler_output, tensors, *args, **kwargs),
        intermediate_tensors,
        scheduler_output.total_num_scheduled_tokens,
    )


class Pending:
    """Rows that are copied to the host."""

    def __init__(self, logits: Tensor, starts: dict[str, int], copies: Any) -> None:
        """logits: [rows, labels]. copies: the stream for copies, on a GPU."""
        self._device, self._starts = logits, starts
        self._copied: Any = None
        if copies is None:
            self._host = logits.cpu()
            return
        self._copied = torch.cuda.Event(blocking=True)
        copies.wait_stream(torch.cuda.current_stream(logits.device))
        with torch.cuda.stream(copies):
            self._host = logits.to("cpu", non_blocking=True)
            self._copied.record()

    def attach(self, output: Any) -> Any:
        """A runner's output with the rows: now, or when it is waited for."""
        if not hasattr(output, "get_output"):
            return self._added(output)
        get_output = output.get_output
        output.get_output = lambda: self._added(get_output())
        return output

    def _added(self, output: Any) -> Any:
        if output is None or not output.req_ids:
            # Of a stage of a pipeline that samples nothing.
            return output
        if self._copied is not None:
            self._copied.synchronize()
        output.emotion_readout = Rows(self._host.numpy(), self._starts)
        return output


def rows_of(output: Any) -> Rows | None:
    """The rows that a runner's output has, if any."""
    return getattr(output, "emotion_readout", None)


def _install(layer: DecoderLayer, probe: LayerProbe, buffer: Tensor) -> None:
    module = layer.module
    for name in ("mean", "scale", "weight", "bias"):
        values = torch.from_numpy(np.ascontiguousarray(getattr(probe, name))).to(buffer.device)
        module.register_buffer(f"{KEY}_{name}", values, persistent=False)
    module.register_buffer(f"{KEY}_readout", buffer, persistent=False)

    def read(module: Any, args: Any, output: Any) -> None:
        hidden, residual = parts(module, output, layer.carried)
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        standard = (stream.flatten(0, -2) - module.emovllm_mean) / module.emovllm_scale
        logits = torch.mm(standard, module.emovllm_weight.T) + module.emovllm_bias
        torch._check(logits.shape[0] <= module.emovllm_readout.shape[0])
        module.emovllm_readout[: logits.shape[0]] = logits

    module.register_forward_hook(read)
