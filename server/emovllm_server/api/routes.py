"""Routes beside vLLM's own: a plugin of the group `vllm.endpoint_plugins`."""

from __future__ import annotations

import os
import secrets
from argparse import Namespace
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from emovllm.applied import Served
from emovllm.catalogue import Catalogue
from emovllm.emotion import Method
from emovllm.engine.admin import Admin
from emovllm.engine.registry import served_by
from emovllm.engine.settings import settings_of
from emovllm.environment import ADMIN_KEY
from emovllm.errors import AdminError, Unsupported
from emovllm.guards import Action, Guard
from emovllm.phases import PHASES, Phase
from emovllm.spec import Scope
from emovllm_server import starting
from emovllm_server.api.middleware import EmotionMiddleware
from emovllm_server.api.openapi import describe_emotions
from emovllm_server.metrics import collectors
from emovllm_server.metrics.install import install
from emovllm_server.playground import page

ADMIN_HEADER = "x-emovllm-admin-key"


class EmotionCard(BaseModel):
    """An emotion that requests may ask for. Strengths are those of `emotion_strength`: 1.0 is the recommended one.

    `scores` are the figures by which the circuit's calibration chose the recommended strength, the best of those it
    tried on its few messages; they are no evaluation.
    """

    id: str
    object: Literal["emotion"] = "emotion"
    circuit: str
    recommended_strength: float = 1.0
    max_strength: float
    scores: dict[str, float]


class CircuitCard(BaseModel):
    """A circuit that is served."""

    id: str
    object: Literal["circuit"] = "circuit"
    digest: str
    model: str
    scope: Scope
    emotions: list[str]

    @classmethod
    def of(cls, served: Served) -> CircuitCard:
        names = [emotion.name for emotion in served.spec.emotions]
        spec = served.spec
        return cls(id=served.name, digest=served.digest, model=spec.model.id, scope=spec.scope, emotions=names)


class ReadingCard(BaseModel):
    """What `emotion_readout` reads: a probe, by its digest, and the layer that is read after.

    labels: those that probabilities are given of, in the order in which tokens have them.
    """

    probe: str
    layer: int
    labels: list[str]


class GuardCard(BaseModel):
    """What is done to every reply that reads as a label with more than a bound, so many tokens in a row."""

    guard: str
    label: str
    bound: float
    tokens: int
    action: Action

    @classmethod
    def of(cls, guard: Guard) -> GuardCard:
        return cls(guard=guard.name, **guard._asdict())


class EmotionList(BaseModel):
    """phases: the parts of a reply that this server can tell, and spare."""

    object: Literal["list"] = "list"
    data: list[EmotionCard]
    circuits: list[CircuitCard]
    methods: list[Method]
    reading: ReadingCard | None = None
    phases: list[Phase] = []
    guards: list[GuardCard] = []


class CircuitList(BaseModel):
    object: Literal["list"] = "list"
    data: list[CircuitCard]


class LoadCircuit(BaseModel):
    """path: a folder under the circuit root that the server was started with."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str


class EmotionRoutes:
    """`GET /v1/emotions`, the routes that load and unload circuits, the playground, and the middleware around those
    that are vLLM's own."""

    name = "emovllm"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        tags: Any = ["emovllm"]
        app.add_api_route("/v1/emotions", list_emotions, methods=["GET"], tags=tags, response_model=EmotionList)
        circuits = "/v1/emotions/circuits"
        app.add_api_route(circuits, list_circuits, methods=["GET"], tags=tags, response_model=CircuitList)
        app.add_api_route(circuits, load_circuit, methods=["POST"], tags=tags, response_model=CircuitCard)
        app.add_api_route(
            circuits + "/{name}", unload_circuit, methods=["DELETE"], tags=tags, response_model=CircuitCard
        )
        page.attach(app)
        app.add_middleware(EmotionMiddleware)
        describe_emotions(app)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        served = served_by(engine_client.vllm_config) if engine_client is not None else None
        configured = isinstance(args.additional_config, dict) and "emovllm" in args.additional_config
        if configured and served is None:
            raise Unsupported("a circuit is configured, but this server's engine has none")
        state.emotions = served
        if served is not None:
            install(engine_client, served.circuits, served.reading, served.policy.guards)
            settings = settings_of(engine_client.vllm_config)
            state.emotion_playground = settings is not None and settings.playground
        else:
            install(engine_client, {})
        state.emotion_admin_key = os.environ.get(ADMIN_KEY) or None
        state.emotion_admin = None
        if served is not None and state.emotion_admin_key is not None:
            state.emotion_admin = Admin(engine_client, served)
        starting.ready()


async def list_emotions(request: Request) -> EmotionList:
    """The emotions that requests may ask for, with their largest strengths and the scores of their calibration; what is
    read, and the operator's guards."""
    catalogue: Catalogue | None = request.app.state.emotions
    if catalogue is None:
        return EmotionList(data=[], circuits=[], methods=[])
    cards = [
        EmotionCard(
            id=name, circuit=served.name, max_strength=catalogue.max_strength(emotion), scores=dict(emotion.scores)
        )
        for served, emotion, name in catalogue.offers()
    ]
    circuits = [CircuitCard.of(served) for served in catalogue.circuits.values()]
    reading = ReadingCard(**catalogue.reading.body()) if catalogue.reading is not None else None
    return EmotionList(
        data=cards,
        circuits=circuits,
        methods=list(catalogue.methods),
        reading=reading,
        phases=[phase for phase in PHASES if phase not in catalogue.unmarked],
        guards=[GuardCard.of(guard) for guard in catalogue.policy.guards],
    )


async def list_circuits(request: Request) -> Response | CircuitList:
    """The circuits that are served (with the admin key)."""
    if (refusal := _refusal(request)) is not None:
        return refusal
    return CircuitList(data=[CircuitCard.of(served) for served in request.app.state.emotions.circuits.values()])


async def load_circuit(request: Request, asked: LoadCircuit) -> Response | CircuitCard:
    """Loads a circuit from a folder under the circuit root, while serving (with the admin key)."""
    if (refusal := _refusal(request)) is not None:
        return refusal
    try:
        served = await request.app.state.emotion_admin.load(asked.name, asked.path)
    except AdminError as error:
        return _error(error.status, str(error))
    collectors.circuit_info(served.name, served.digest, served.spec)
    return CircuitCard.of(served)


async def unload_circuit(request: Request, name: str) -> Response | CircuitCard:
    """Unloads a circuit once no request uses it any more (with the admin key)."""
    if (refusal := _refusal(request)) is not None:
        return refusal
    try:
        served = await request.app.state.emotion_admin.unload(name)
    except AdminError as error:
        return _error(error.status, str(error))
    collectors.circuit_info(served.name, served.digest, served.spec, loaded=False)
    return CircuitCard.of(served)


def _refusal(request: Request) -> JSONResponse | None:
    state = request.app.state
    if state.emotion_admin is None:
        return _error(403, "this server loads no circuits at run time; start it with --admin-key and --circuit-root")
    given = request.headers.get(ADMIN_HEADER, "")
    if not secrets.compare_digest(given.encode(), state.emotion_admin_key.encode()):
        return _error(401, f"the header {ADMIN_HEADER} does not hold the admin key")
    return None


def _error(status: int, message: str) -> JSONResponse:
    kinds = {401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError", 409: "ConflictError"}
    error = {"message": message, "type": kinds.get(status, "BadRequestError"), "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)
