"""What a server offers: one or several circuits, and the operator's limits on what requests may ask of them.

Needs neither torch nor vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from emovllm.applied import Applied, Served
from emovllm.circuit import Circuit
from emovllm.emotion import Method, Target
from emovllm.errors import EmotionError
from emovllm.fields import Options, over_reply
from emovllm.guards import check_guards
from emovllm.instructions import instruct
from emovllm.phases import Phase
from emovllm.policy import Policy
from emovllm.readout import Detail, Reading
from emovllm.sparing import FREE, NO_PARSERS, Form, spare
from emovllm.spec import CircuitSpec, EmotionSpec
from emovllm.values import short

_NOTHING_READ = (
    "this server reads nothing: start it with --readout, where the circuit's folder holds a probe, or with --probe DIR"
)

CircuitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


@dataclass(slots=True)
class Catalogue:
    """The circuits of one server, by name; they come and go while it runs.

    leaving: those that take no more requests, and have not given up their columns yet.
    methods: what `emotion_method` may be.
    reading: what `emotion_readout` reads; None where the engine reads nothing.
    unscheduled: why no `emotion_schedule` can be kept, if so; untargeted: why no `emotion_target`.
    unmarked: the phases of replies that cannot be told, and why.
    """

    policy: Policy = field(default_factory=Policy)
    circuits: dict[str, Served] = field(default_factory=dict)
    leaving: dict[str, Served] = field(default_factory=dict)
    methods: tuple[Method, ...] = ("circuit",)
    reading: Reading | None = None
    unscheduled: str = ""
    untargeted: str = ""
    unmarked: Mapping[Phase, str] = field(default_factory=lambda: NO_PARSERS)

    @classmethod
    def of(
        cls,
        policy: Policy,
        circuits: Mapping[str, Circuit],
        methods: tuple[Method, ...] = ("circuit",),
        reading: Reading | None = None,
        unscheduled: str = "",
        untargeted: str = "",
        unmarked: Mapping[Phase, str] = NO_PARSERS,
    ) -> Catalogue:
        """Circuits side by side, in their order: as workers place them at start-up."""
        catalogue = cls(
            policy,
            methods=methods,
            reading=reading,
            unscheduled=unscheduled,
            untargeted=untargeted,
            unmarked=unmarked,
        )
        for name, circuit in circuits.items():
            first = sum(len(served.columns) for served in catalogue.circuits.values())
            catalogue.circuits[name] = Served.of(name, circuit, first, methods)
        return catalogue

    def resolve(self, fields: Mapping[str, Any], form: Form = FREE) -> Applied | None:
        """Reads a request's fields (`emovllm.emotion.Options`), with the names of circuits and the policy.

        `emotion` may name a circuit, `a/anger`, and must where several have that emotion; a blend is of one circuit.

        Returns: None where the request gets the plain model and asked for no emotion.
        Raises: EmotionError, with the accepted values in its message.
        """
        if fields.get("emotion") is None and self.policy.default_emotion is not None:
            fields = {**fields, "emotion": self.policy.default_emotion}
        options = Options.read(fields, self._accepted)
        if not options.weights:
            return None
        served, mix = self._locate(options.weights)
        options = self._scheduled(replace(options, emotion=mix), served.spec)
        scope = options.emotion_scope or served.spec.scope
        options, plain = spare(options, scope, form, self.unmarked)
        emotion = options.of(served.spec, self.methods)
        self._within_limits(options)
        if emotion is not None and emotion.target is not None:
            emotion = replace(emotion, target=self._followed(emotion.target, options))
        return Applied(
            served,
            mix,
            options.strength,
            None if plain else emotion,
            scope,
            options.method,
            schedule=options.emotion_schedule,
            target=options.emotion_target,
            mute=tuple(options.emotion_mute or ()),
            plain=plain,
            start=options.emotion_from,
            instruction=instruct(options, served.spec),
        )

    def _scheduled(self, options: Options, circuit: CircuitSpec) -> Options:
        """With the operator's schedule, where there is none and it applies. Raises: EmotionError where one cannot be
        served."""
        if options.emotion_schedule is None and over_reply(options.emotion_scope or circuit.scope):
            options = replace(options, emotion_schedule=self.policy.default_schedule)
        if options.emotion_schedule is not None and self.unscheduled:
            raise EmotionError("emotion_schedule", f"this server keeps no schedules: {self.unscheduled}")
        return options

    def _followed(self, target: Target, options: Options) -> Target:
        """A target with what it goes by here, and within the operator's limit. Raises: EmotionError."""
        if self.untargeted:
            raise EmotionError("emotion_target", f"this server follows no emotion_target: {self.untargeted}")
        if self.reading is None:
            raise EmotionError("emotion_target", f"emotion_target needs a read-out, and {_NOTHING_READ}")
        if unread := [name for name in options.weights if name not in self.reading.labels]:
            raise EmotionError(
                "emotion_target",
                f"emotion_target needs a probe that reads {', '.join(unread)}; this one reads "
                f"{', '.join(self.reading.labels)}",
            )
        limit = self.policy.max_strength or math.inf
        strongest = max(weight * options.strength for weight in options.weights.values())
        labels = tuple(self.reading.labels.index(name) for name in options.weights)
        return target._replace(labels=labels, cap=min(target.cap, limit / strongest))

    def detail(self, fields: Mapping[str, Any]) -> Detail | None:
        """How much of a read-out a request's fields ask for; None for none. Raises: EmotionError."""
        asked = Options.read({"emotion_readout": fields.get("emotion_readout")}).emotion_readout
        if asked is not None and self.reading is None:
            raise EmotionError("emotion_readout", _NOTHING_READ)
        return asked

    def offers(self) -> Iterator[tuple[Served, EmotionSpec, str]]:
        """Each emotion that requests may use, with its circuit and the shortest name it answers to."""
        for served in self.circuits.values():
            for emotion in served.spec.emotions:
                if self._allowed(served, emotion.name):
                    alone = len(self._having(emotion.name)) == 1
                    yield served, emotion, emotion.name if alone else f"{served.name}/{emotion.name}"

    def max_strength(self, emotion: EmotionSpec) -> float:
        """The largest |weight x strength| of an emotion, 1.0 being its recommendation."""
        own = emotion.maximal / emotion.recommended
        return min(own, self.policy.max_strength or own)

    def check_policy(self) -> None:
        """Raises: EmotionError where the policy names what no circuit, or for guards the probe, has."""
        check_guards(self.policy.guards, self.reading.labels if self.reading is not None else None)
        for name in self.policy.emotions or ():
            try:
                self._parse(name)
            except EmotionError as error:
                raise EmotionError("emotions", f"allowed emotions: {error}") from None
        if self.policy.default_emotion is not None:
            try:
                self.resolve({})
            except EmotionError as error:
                raise EmotionError("default_emotion", f"default emotion: {error}") from None

    def parse_suffix(self, suffix: str) -> dict[str, float]:
        """The weights that a model's name stands for: `anger`, `a/anger`, or a blend in equal parts, `anger+fear`.

        Raises: EmotionError.
        """
        names = suffix.split("+")
        mix = {name: 1.0 / len(names) for name in names}
        if len(mix) != len(names):
            raise EmotionError("model", f"{short(suffix)} names an emotion twice")
        self._locate(mix)
        return mix

    def room(self, emotions: int, capacity: int) -> int | None:
        """The first of as many free columns in a row, or None."""
        taken = {column for served in (*self.circuits.values(), *self.leaving.values()) for column in served.columns}
        starts = range(capacity - emotions + 1)
        return next((first for first in starts if taken.isdisjoint(range(first, first + emotions))), None)

    def _locate(self, emotion: Mapping[str, float]) -> tuple[Served, dict[str, float]]:
        mix: dict[str, float] = {}
        found: Served | None = None
        for key, weight in emotion.items():
            served, name = self._parse(key)
            if not self._allowed(served, name):
                message = f"emotion {short(key)} is not allowed on this server; {self._accepted()}"
                raise EmotionError("emotion", message, "not_allowed")
            if found is not None and served is not found:
                raise EmotionError(
                    "emotion", f"a blend is of one circuit, and this one is of {found.name} and {served.name}"
                )
            if name in mix:
                raise EmotionError("emotion", f"emotion {short(name)} is named twice")
            found, mix[name] = served, weight
        assert found is not None
        return found, mix

    def _parse(self, key: Any) -> tuple[Served, str]:
        circuit, slash, name = key.rpartition("/") if isinstance(key, str) else ("", "", key)
        having = self._having(name)
        if slash:
            having = [served for served in having if served.name == circuit]
        if not having:
            raise EmotionError("emotion", f"unknown emotion {short(key)}; {self._accepted()}", "unknown_emotion")
        if len(having) > 1:
            choices = ", ".join(f"{served.name}/{name}" for served in having)
            raise EmotionError("emotion", f"emotion {short(name)} is ambiguous: choose one of {choices}")
        return having[0], name

    def _having(self, name: Any) -> list[Served]:
        return [
            served for served in self.circuits.values() if any(emotion.name == name for emotion in served.spec.emotions)
        ]

    def _allowed(self, served: Served, name: str) -> bool:
        names = self.policy.emotions
        return names is None or name in names or f"{served.name}/{name}" in names

    def _accepted(self) -> str:
        if not self.circuits:
            return "this server has a probe alone, and no circuit"
        offered = [name for _, _, name in self.offers()]
        which = "this circuit has" if len(self.circuits) == 1 else "these circuits have"
        return f"{which} {', '.join(offered)}"

    def _within_limits(self, options: Options) -> None:
        limit = self.policy.max_strength
        if limit is None:
            return
        for name, weight in options.weights.items():
            strength = weight * options.strength
            if abs(strength) > limit * (1 + 1e-9):
                message = f"{name} at strength {strength:g} is over this server's maximum of {limit:g}"
                raise EmotionError(options.strength_field, message, "over_maximum")
