"""Circuits that come and go while a server runs, without stopping its traffic or compiling anything anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from emovllm.applied import Served
from emovllm.catalogue import Catalogue, CircuitName
from emovllm.circuit import Circuit
from emovllm.circuit_files import load_circuit
from emovllm.emotion import Wire
from emovllm.engine.config import check_directions, check_model, circuit_called
from emovllm.engine.handshake import ask_engines, check_workers
from emovllm.engine.patching import patches
from emovllm.engine.settings import settings_of
from emovllm.errors import AdminError, CircuitError, EmotionError, Unsupported

# Between two looks at the requests that still use a circuit; longer than a request is on its way into the engine.
_PAUSE_S = 0.2
_NAME: TypeAdapter[str] = TypeAdapter(CircuitName)


class Admin:
    """Loads and unloads the circuits of one server's engines."""

    def __init__(self, client: Any, catalogue: Catalogue) -> None:
        """client: vLLM's AsyncLLM. Raises: Unsupported."""
        parallel = client.vllm_config.parallel_config
        if getattr(parallel, "_api_process_count", 1) > 1:
            raise Unsupported(
                "circuits cannot be loaded at run time with several API servers, which would not know of each other's; "
                "set --api-server-count 1, or drop --admin-key"
            )
        settings = settings_of(client.vllm_config)
        if settings is None or settings.circuit_root is None or settings.capacity is None:
            raise Unsupported("loading circuits at run time needs --circuit-root, the folder that they come from")
        self._client, self._catalogue = client, catalogue
        self._settings, self._capacity = settings, settings.capacity
        self._root = Path(settings.circuit_root).resolve()
        self._turn = asyncio.Lock()
        remember_emotions.install()

    async def load(self, name: str, path: str) -> Served:
        """Serves the circuit in the folder `path` of the root as `name`.

        Raises: AdminError; nothing is changed then.
        """
        folder = self._folder(name, path)
        async with self._turn:
            await self._awake()
            if name in self._catalogue.circuits or name in self._catalogue.leaving:
                raise AdminError(409, f"a circuit {name} is there already; unload it first")
            try:
                circuit = await asyncio.to_thread(load_circuit, folder)
                check_model(self._client.vllm_config, circuit_called(name), circuit.spec.model)
                check_directions(self._settings, name, circuit)
                served = await self._place(name, folder, circuit)
            except (CircuitError, Unsupported) as error:
                raise AdminError(400, str(error).replace(str(self._root), "")) from None
            self._catalogue.circuits[name] = served
            return served

    async def unload(self, name: str) -> Served:
        """Takes no more requests for a circuit, waits for those that use it, and gives its columns up.

        Raises: AdminError.
        """
        async with self._turn:
            await self._awake()
            served = self._catalogue.circuits.get(name)
            if served is None:
                raise AdminError(404, f"no circuit {name} is loaded; there are {', '.join(self._catalogue.circuits)}")
            if len(self._catalogue.circuits) == 1:
                raise AdminError(409, f"{name} is the only circuit; load another one first")
            del self._catalogue.circuits[name]
            self._catalogue.leaving[name] = served
            try:
                self._catalogue.check_policy()
            except EmotionError as error:
                self._catalogue.circuits[name] = self._catalogue.leaving.pop(name)
                raise AdminError(409, f"this server's settings name {name}'s emotions ({error})") from None
            try:
                await asyncio.sleep(_PAUSE_S)
                while self._in_use(served.digest):
                    await asyncio.sleep(_PAUSE_S)
            except asyncio.CancelledError:
                # Whoever asked is gone, and the circuit still whole.
                self._catalogue.circuits[name] = self._catalogue.leaving.pop(name)
                raise
            await asyncio.shield(self._give_up(served))
            return served

    async def _awake(self) -> None:
        """A circuit is folded through weights, which a sleeping engine has given up. Raises: AdminError."""
        if await self._client.is_sleeping():
            raise AdminError(409, "the engine sleeps; wake it up first (POST /wake_up)")

    async def _give_up(self, served: Served) -> None:
        await ask_engines(self._client, "emotion_unload", served.digest)
        del self._catalogue.leaving[served.name]

    async def _place(self, name: str, folder: Path, circuit: Circuit) -> Served:
        first = self._catalogue.room(len(circuit.names), self._capacity)
        if first is None:
            raise AdminError(
                409,
                f"no room for {len(circuit.names)} emotions in a row among {self._capacity}; unload a circuit, or "
                "start with a larger --emotion-capacity",
            )
        served = Served.of(name, circuit, first, self._catalogue.methods)
        if any(served.digest == other.digest for other in self._catalogue.circuits.values()):
            raise AdminError(409, "the same circuit is loaded already under another name")
        errors = await ask_engines(self._client, "emotion_read", str(folder), served.digest)
        _raise_first([error for engine in errors for error in engine])
        reports = await ask_engines(self._client, "emotion_load", first)
        try:
            for engine in reports:
                _raise_first([report["error"] for report in engine])
                check_workers(engine, [served])
        except Unsupported:
            await ask_engines(self._client, "emotion_unload", served.digest)
            raise
        return served

    def _folder(self, name: str, path: str) -> Path:
        try:
            _NAME.validate_python(name)
        except ValidationError:
            raise AdminError(400, "name: up to 64 letters, digits, dots, dashes and underscores") from None
        try:
            folder = (self._root / path).resolve()
        except (OSError, ValueError, RuntimeError):
            folder = self._root
        # A link that leads out of the root is outside of it.
        if folder == self._root or not folder.is_relative_to(self._root) or not folder.is_dir():
            raise AdminError(400, "path: no such folder under the circuit root")
        return folder

    def _in_use(self, digest: str) -> bool:
        states = self._client.output_processor.request_states.values()
        return any(getattr(state, "emotion_circuit", None) == digest for state in states)


def _raise_first(errors: list[str | None]) -> None:
    for error in errors:
        if error is not None:
            raise Unsupported(error)


@patches("vllm.v1.engine.output_processor.OutputProcessor.add_request")
def remember_emotions(add_request: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Has vLLM's state of each request say which circuit it uses."""
    result = add_request(self, request, *args, **kwargs)
    wire = Wire.of(request.sampling_params)
    if wire is not None:
        self.request_states[request.request_id].emotion_circuit = wire.circuit
    return result
