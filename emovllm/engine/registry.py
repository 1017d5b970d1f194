"""What the engines of this process offer, by their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emovllm.catalogue import Catalogue
from emovllm.circuit import Circuit
from emovllm.emotion import METHODS
from emovllm.engine.markers import reasoning_parser_of
from emovllm.engine.parsers import unmarked
from emovllm.engine.settings import settings_of
from emovllm.errors import EmotionError, Unsupported
from emovllm.phases import Phase
from emovllm.policy import Policy

_catalogues: dict[str, Catalogue] = {}  # by their settings


def register(vllm_config: Any, circuits: Mapping[str, Circuit]) -> None:
    """Notes what engines of this configuration offer. Idempotent.

    Raises: Unsupported where the policy names what no circuit has.
    """
    settings = settings_of(vllm_config)
    assert settings is not None
    key = settings.model_dump_json()
    catalogue = _catalogues.pop(key, None)
    if catalogue is None:
        parsers: dict[Phase, str | None] = {
            "thinking": reasoning_parser_of(vllm_config),
            "tools": settings.tool_parser,
        }
        policy = Policy(**{name: getattr(settings, name) for name in Policy.model_fields})
        catalogue = Catalogue.of(
            policy,
            circuits,
            METHODS if settings.steering else ("circuit",),
            settings.reading,
            unscheduled=_unscheduled(vllm_config),
            untargeted=_untargeted(vllm_config),
            unmarked=unmarked(parsers, settings.markers),
        )
        try:
            catalogue.check_policy()
        except EmotionError as error:
            raise Unsupported(str(error)) from None
    _catalogues[key] = catalogue


def _unscheduled(vllm_config: Any) -> str:
    """Why an engine cannot keep schedules; empty where it can."""
    if vllm_config.speculative_config is not None and vllm_config.scheduler_config.async_scheduling:
        return (
            "with asynchronous scheduling and drafts the next token's place is not known when it is computed; start it "
            "with --no-async-scheduling, or without drafts"
        )
    return ""


def _untargeted(vllm_config: Any) -> str:
    """Why an engine cannot follow targets; empty where it can."""
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        return (
            "with pipeline parallelism a stage does not know what a later one reads; start it with tensor parallelism"
        )
    if vllm_config.kv_transfer_config is not None:
        return "keys and values come from elsewhere, and what was read there does not; start it without KV transfer"
    return ""


def served_by(vllm_config: Any) -> Catalogue | None:
    """What an engine offers, or None where it has no circuit. Raises: Unsupported."""
    settings = settings_of(vllm_config)
    if settings is None:
        return None
    try:
        return _catalogues[settings.model_dump_json()]
    except KeyError:
        # A configuration that our plugin did not see names none of our classes: its engine would not steer.
        raise Unsupported(
            "the configuration names a circuit and was not made by EngineArgs.create_engine_config"
        ) from None


def served_last() -> Catalogue:
    """A server process serves one engine: what was configured last. Engines check again."""
    return next(reversed(_catalogues.values()))
