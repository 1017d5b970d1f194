"""The workers: vLLM's own, with the circuit installed once the weights are there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm.config import CompilationMode
from vllm.logger import init_logger
from vllm.v1.worker.gpu_worker import Worker

from emovllm import __version__, cpu
from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.engine import experts, injection, residual, runner_v1, runner_v2
from emovllm.engine.calming import Calm
from emovllm.engine.coefficients import Coefficients, rows_for
from emovllm.engine.config import adapters_of, has_room, weight_bits
from emovllm.engine.form import form_of
from emovllm.engine.gains import Gains, Reads
from emovllm.engine.live import LiveCheckMixin
from emovllm.engine.markers import automaton_of
from emovllm.engine.readout import ReadOut
from emovllm.engine.settings import Settings, settings_of
from emovllm.errors import CircuitError, Unsupported
from emovllm.fingerprint import Nearness
from emovllm.probe import Probe, load_probe
from emovllm.progress import stage

# vLLM configures the loggers below its own name only.
logger = init_logger("vllm.emovllm")


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


def _load_probe(settings: Settings) -> Probe:
    """Raises: ProbeError, Unsupported."""
    assert settings.probe is not None
    assert settings.reading is not None
    trained = load_probe(settings.probe)
    if trained.digest != settings.reading.probe:
        raise Unsupported(f"{settings.probe}: not the probe that the server read; give every node the same")
    return trained


class EmotionWorkerMixin(LiveCheckMixin):
    """Before any class of vLLM's in the order of resolution."""

    emotion_circuits: dict[str, _Placed]  # by digest
    emotion_pending: Circuit

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
            gains=self._make_gains(settings, runner.device),
        )
        if settings.reading is not None:
            trained, rows = _load_probe(settings), len(coefficients.buffer)
            self.read_out = ReadOut(model, trained, settings.readout_layer, rows, weight_bits(config))
        form = form_of(config, settings, coefficients.buffer)
        room = has_room(circuits.values(), settings.capacity)
        wanted = None if room else {site for circuit in circuits.values() for site in circuit.sites()}
        self.emotion_sites = injection.install(
            model, wanted, coefficients, settings.capacity, form, weight_bits(config)
        )
        self.expert_sites, self.steered_layers = [], []
        if circuits:
            spec = next(iter(circuits.values())).spec.model
            shape = settings.capacity, spec.hidden_size
            self.expert_sites = experts.install(model, wanted, shape, coefficients, form.elsewhere)
            if settings.steering:
                self.steered_layers = residual.install(model, spec, coefficients, settings.capacity, form.elsewhere)
        if self.read_out is not None:
            self.read_out.install()
        self.emotion_circuits = {}
        first = 0
        for circuit in circuits.values():
            self._place(circuit, first)
            first += len(circuit.names)
        self._calm(settings)
        attach = runner_v2.attach if hasattr(runner, "model_state") else runner_v1.attach
        attach(runner, self.emotion_coefficients, self.read_out)
        if self.read_out is not None:
            self.read_out.follow(runner)
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

    def _make_gains(self, settings: Settings, device: torch.device) -> Gains:
        config = self.vllm_config  # type: ignore[attr-defined]
        drafts = config.speculative_config.num_speculative_tokens if config.speculative_config is not None else 0
        reads = None
        if settings.reading is not None:
            reads = Reads(len(settings.reading.labels), config.model_config.max_model_len)
        return Gains(config.scheduler_config.max_num_seqs, device, 1 + drafts, automaton_of(config), reads)

    def _calm(self, settings: Settings) -> None:
        """Has the guards that calm take away the emotion that they watch, by the first circuit that has it."""
        calms = []
        for guard in settings.guards:
            if guard.action == "calm":
                assert settings.reading is not None
                label = settings.reading.labels.index(guard.label)
                calms.append(Calm(label, guard.bound, guard.tokens, self._against(guard.label)))
        if calms:
            self.emotion_coefficients.gains.guard(calms, self.emotion_coefficients.buffer.shape[1])

    def _against(self, emotion: str) -> dict[int, float]:
        """Of an emotion that a circuit has, as the configuration made sure: its column, and what takes its recommended
        strength away."""
        placed = next(placed for placed in self.emotion_circuits.values() if emotion in placed.circuit.names)
        column = placed.first + placed.circuit.names.index(emotion)
        return {column: -placed.circuit.spec.emotion(emotion).recommended}

    def _count_memory(self, runner: Any) -> None:
        """Adds ours to the memory of the weights, by which some versions know what is left for keys and values."""
        tensors = [self.emotion_coefficients.buffer, *(place.layer.emotion_vectors for place in self._places())]
        tensors += [site.delta for site in self.emotion_sites if site.delta is not None]
        tensors += [self.read_out.buffer] if self.read_out is not None else []
        size = sum(tensor.nbytes for tensor in tensors) + self.emotion_coefficients.gains.nbytes
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
        # The weights are in place all the same, and plain requests may go on.
        errors: list[Unsupported] = []
        for take_up in (self._refill, *([self.read_out.recognise] if self.read_out is not None else [])):
            try:
                take_up()
            except Unsupported as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _refill(self) -> None:
        """Folds the circuits through new weights. Raises: Unsupported; no emotion can be applied then."""
        try:
            for digest, placed in list(self.emotion_circuits.items()):
                nearness = self._fill(placed.circuit, placed.first)
                self.emotion_circuits[digest] = placed._replace(nearness=nearness)
        except Unsupported as error:
            self.emotion_coefficients.broken = str(error)
            raise
        self.emotion_coefficients.broken = None

    def determine_available_memory(self) -> int:
        # Where the model is run, and so compiled, for the first time.
        if self.vllm_config.compilation_config.mode == CompilationMode.NONE:  # type: ignore[attr-defined]
            return int(super().determine_available_memory())  # type: ignore[misc]
        hint = "a minute or more the first time, then seconds"
        with stage("Compiling the model", logger.info, hint), cpu.compiling():
            return int(super().determine_available_memory())  # type: ignore[misc]

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        with stage("Checking that every site of the circuit is live", logger.info):
            self._check_live()
        return times

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        pending = None
        if self.read_out is not None:
            self.emotion_coefficients.gains.take(self.read_out.buffer)
            pending = self.read_out.take()
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        return pending.attach(output) if pending is not None else output

    def emotion_report(self) -> dict[str, Any]:
        """What the front end compares at start-up (`collective_rpc`): version, circuits, and this rank's sites; and how
        far the weights of each are from each circuit's, and may be, for `emovllm verify`."""
        return {
            "version": __version__,
            "digests": sorted(self.emotion_circuits),
            "sites": [place.key for place in self._places()],
            "read": [self.read_out.key] if self.read_out is not None and self.read_out.key is not None else [],
            "distances": {
                digest: {key: (site.distance, site.limit.site) for key, site in placed.nearness.items()}
                for digest, placed in self.emotion_circuits.items()
            },
        }


class EmotionWorker(EmotionWorkerMixin, Worker):
    """vLLM's GPU worker."""
