"""The workers: vLLM's own, with the circuit installed once the weights are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from vllm.config import CompilationMode
from vllm.logger import init_logger
from vllm.v1.worker.gpu_worker import Worker

from emovllm import __version__
from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.engine import experts, injection, residual, runner_v1, runner_v2
from emovllm.engine.coefficients import Coefficients, rows_for
from emovllm.engine.config import adapters_of, has_room, weight_bits
from emovllm.engine.form import form_of
from emovllm.engine.settings import settings_of
from emovllm.errors import CircuitError, Unsupported
from emovllm.fingerprint import Nearness
from emovllm.progress import stage

# vLLM configures the loggers below its own name only.
logger = init_logger("vllm.emovllm")

# Where nothing was compiled before the live check, it is this size that gets traced: Dynamo takes 1 for a constant.
_LIVE_TOKENS = 8
# Above what rounding hides beside a residual stream's values; a sum over many ranks still fits float16.
_LIVE_VALUE = 256.0


class _Placed(NamedTuple):
    """nearness: of each site's weights here, as `injection.fill` says."""

    circuit: Circuit
    first: int
    nearness: dict[str, Nearness]

    @property
    def columns(self) -> slice:
        return slice(self.first, self.first + len(self.circuit.names))


def _load(source: str, digest: str) -> Circuit:
    """Raises: CircuitError, Unsupported."""
    circuit = load_circuit(source)
    if circuit.digest() != digest:
        raise Unsupported(f"{source}: not the circuit that the server read; give every node the same")
    return circuit


class EmotionWorkerMixin:
    """Before any class of vLLM's in the order of resolution."""

    emotion_circuits: dict[str, _Placed]  # by digest
    emotion_pending: Circuit
    expert_sites: list[experts.ExpertsSite]
    steered_layers: list[residual.SteeredLayer]

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        config = self.vllm_config  # type: ignore[attr-defined]
        settings = settings_of(config)
        if settings is None or settings.capacity is None:
            raise Unsupported(
                "emovllm's worker was asked for, and its plugin was not there to prepare the engine: name emovllm in "
                "VLLM_PLUGINS (or unset it), and a circuit in --additional-config; `emovllm serve` does both"
            )
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        circuits = {name: _load(source, settings.digests[name]) for name, source in settings.sources.items()}
        runner = self.model_runner  # type: ignore[attr-defined]
        model, scheduler = runner.get_model(), config.scheduler_config
        captured = config.compilation_config.max_cudagraph_capture_size or 0
        coefficients = self.emotion_coefficients = Coefficients(
            settings.capacity,
            rows_for(scheduler.max_num_batched_tokens, captured, config.parallel_config.tensor_parallel_size),
            runner.device,
            max_requests=scheduler.max_num_seqs,
            adapters=adapters_of(config),
            steering=settings.steering,
        )
        form = form_of(config, settings, coefficients.buffer)
        room = has_room(circuits.values(), settings.capacity)
        wanted = None if room else {site for circuit in circuits.values() for site in circuit.sites()}
        self.emotion_sites = injection.install(
            model, wanted, coefficients, settings.capacity, form, weight_bits(config)
        )
        spec = next(iter(circuits.values())).spec.model
        shape = settings.capacity, spec.hidden_size
        self.expert_sites = experts.install(model, wanted, shape, coefficients, form.elsewhere)
        self.steered_layers = []
        if settings.steering:
            self.steered_layers = residual.install(model, spec, coefficients, settings.capacity, form.elsewhere)
        self.emotion_circuits = {}
        first = 0
        for circuit in circuits.values():
            self._place(circuit, first)
            first += len(circuit.names)
        attach = runner_v2.attach if hasattr(runner, "model_state") else runner_v1.attach
        attach(runner, self.emotion_coefficients)
        self._count_memory(runner)
        for name, circuit in circuits.items():
            logger.info(
                "Emotion circuit %s of %s: %s, at %d sites of this rank, digest %.12s",
                name,
                circuit.spec.model.id,
                ", ".join(circuit.names),
                len(self.emotion_sites) + len(self.expert_sites),
                settings.digests[name],
            )

    def _count_memory(self, runner: Any) -> None:
        """Adds ours to the memory of the weights, by which some versions know what is left for keys and values."""
        tensors = [self.emotion_coefficients.buffer, *(place.layer.emotion_vectors for place in self._places())]
        tensors += [site.delta for site in self.emotion_sites if site.delta is not None]
        size = sum(tensor.nbytes for tensor in tensors)
        runner.model_memory_usage = getattr(runner, "model_memory_usage", 0) + size

    def _place(self, circuit: Circuit, first: int) -> None:
        """Raises: Unsupported."""
        nearness = self._fill(circuit, first)
        residual.fill(self.steered_layers, circuit, first)
        digest = circuit.digest()
        self.emotion_circuits[digest] = _Placed(circuit, first, nearness)
        self.emotion_coefficients.place(digest, circuit.names, first)

    def _fill(self, circuit: Circuit, first: int) -> dict[str, Nearness]:
        """Raises: Unsupported."""
        return injection.fill(self.emotion_sites, circuit, first) | experts.fill(self.expert_sites, circuit, first)

    def emotion_read(self, source: str, digest: str) -> str | None:
        """Reads a circuit that is to be loaded while serving (`collective_rpc`). A step of its own: ranks fold
        together, and one that lacks the folder must not leave the others waiting.

        Returns: what is wrong, if anything.
        """
        try:
            self.emotion_pending = _load(source, digest)
        except (CircuitError, Unsupported) as error:
            return str(error)
        return None

    def emotion_load(self, first: int) -> dict[str, Any]:
        """Takes up the circuit that was read, into the columns from `first` on (`collective_rpc`).

        Returns: `emotion_report`, with what is wrong as `error`, if anything; nothing is in place then.
        """
        error = None
        circuit = self.emotion_pending
        try:
            self._place(circuit, first)
        except Unsupported as reason:
            error = str(reason)
            self._clear(slice(first, first + len(circuit.names)))
        return {**self.emotion_report(), "error": error}

    def emotion_unload(self, digest: str) -> None:
        """Drops a circuit that no request uses any more (`collective_rpc`)."""
        placed = self.emotion_circuits.pop(digest, None)
        if placed is not None:
            self.emotion_coefficients.displace(digest)
            self._clear(placed.columns)

    def _clear(self, columns: slice) -> None:
        injection.clear(self.emotion_sites, columns)
        experts.clear(self.expert_sites, columns)
        residual.clear(self.steered_layers, columns)

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        super().reload_weights(*args, **kwargs)  # type: ignore[misc]
        try:
            for digest, placed in list(self.emotion_circuits.items()):
                nearness = self._fill(placed.circuit, placed.first)
                self.emotion_circuits[digest] = placed._replace(nearness=nearness)
        except Unsupported as error:
            # The weights are in place all the same, and plain requests may go on.
            self.emotion_coefficients.broken = str(error)
            raise
        self.emotion_coefficients.broken = None

    def determine_available_memory(self) -> int:
        # Where the model is run, and so compiled, for the first time.
        if self.vllm_config.compilation_config.mode == CompilationMode.NONE:  # type: ignore[attr-defined]
            return int(super().determine_available_memory())  # type: ignore[misc]
        with stage("Compiling the model", logger.info, "a minute or more the first time, then seconds"):
            return int(super().determine_available_memory())  # type: ignore[misc]

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        with stage("Checking that every site of the circuit is live", logger.info):
            self._check_live()
        return times

    def emotion_report(self) -> dict[str, Any]:
        """What the front end compares at start-up (`collective_rpc`): version, circuits, and this rank's sites; and how
        far the weights of each are from each circuit's, and may be, for `emovllm verify`."""
        return {
            "version": __version__,
            "digests": sorted(self.emotion_circuits),
            "sites": [place.key for place in self._places()],
            "distances": {
                digest: {key: (site.distance, site.limit.site) for key, site in placed.nearness.items()}
                for digest, placed in self.emotion_circuits.items()
            },
        }

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
        buffer[:, 0] = 1.0
        if self.steered_layers:
            buffer[:, -1] = 1.0
        try:
            for tensor in vectors:
                tensor.zero_()
            for tokens, options in self._dummy_runs():
                # In a stage without sites too: stages of a pipeline wait for each other.
                plain, again = self._dummy_output(tokens, options), self._dummy_output(tokens, options)
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
        outputs: list[Any] = []
        # The V2 runner's dummy run drops what a pipeline stage that is not the last hands on.
        runner.execute_model = lambda *args, **kwargs: outputs.append(execute_model(*args, **kwargs))
        try:
            with self._states_apart(tokens):
                output = runner._dummy_run(tokens, force_attention=True, **options)[0]
        finally:
            del runner.execute_model
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


class EmotionWorker(EmotionWorkerMixin, Worker):
    """vLLM's GPU worker."""
