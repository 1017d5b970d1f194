"""What validation measures of one scenario and event: the sweeps of all its prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from emovllm.errors import ResultsError
from emovllm_offline.data.prompts import Prompt, render, require_different
from emovllm_offline.data.sev import Item
from emovllm_offline.data.styles import Style
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.model.decoder import Decoder
from emovllm_offline.validation.plan import Plan
from emovllm_offline.validation.sweeps import KINDS, Units, Variant, sweep
from emovllm_offline.validation.trajectories import Views

logger = logging.getLogger(__name__)


def swept(plan: Plan, decoder: Decoder) -> dict[str, list[int]]:
    """The k of each kind of units that a model's layers have, beside 0; of others it is said that they are left out.

    Raises: ResultsError where a k is below 0, or a kind has none.
    """
    found = {}
    most = {"neurons": decoder.intermediate_size, "heads": decoder.num_heads}
    for kind, ks in (("neurons", plan.neurons), ("heads", plan.heads)):
        asked = {most[kind] if k == "all" else k for k in ks}
        if any(k < 0 for k in asked):
            raise ResultsError(f"every sweep needs a k, none below 0: of {kind}, {', '.join(map(str, ks))}")
        found[kind] = sorted(k for k in asked if 0 < k <= most[kind])
        if not found[kind]:
            raise ResultsError(f"every sweep needs a k: of {kind}, at most {most[kind]}, or all")
        if over := sorted(k for k in asked if k > most[kind]):
            logger.warning(
                "no layer has more than %d %s: k = %s is left out", most[kind], kind, ", ".join(map(str, over))
            )
    return found


class Protocol:
    """The variants of one item, in the order in which their scores are stored."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        findings: Findings,
        styles: Sequence[Style],
        plan: Plan,
        batch_size: int,
        views: Views | None = None,
    ) -> None:
        """views: where a circuit is to be looked at, too. Raises: ResultsError, as `swept`."""
        self.views = views
        self.decoder, self.tokenizer, self.styles, self.plan = decoder, tokenizer, styles, plan
        self.emotions = findings.emotions
        self.batch_size = batch_size
        self.ks = swept(plan, decoder)
        self.units = Units(decoder, findings, range(plan.seeds))
        count = len(self.emotions)
        # Per item: the changes [E, SITES, variants] of both modes; the scores [E, SITES, E] and [SITES, E] of the
        # prompts themselves; what is seen of the circuit; the states [E, L, hidden].
        self.shapes = {
            "ablation": (count, 2, len(self.variants(0)) - 1),
            "enhancement": (count, 2, len(self.variants(0)) - 1),
            "elicited": (count, 2, count),
            "neutral": (2, count),
        } | ({} if views is None else {"seen": views.shape})
        self.states_shape = (count, len(decoder.layers), decoder.hidden_size)

    @property
    def sizes(self) -> tuple[int, int]:
        return sum(int(np.prod(shape)) for shape in self.shapes.values()), int(np.prod(self.states_shape))

    def variants(self, emotion: int) -> list[Variant]:
        """k = 0 first; then, kind by kind, the emotion's own ranking and each random one, by k."""
        sources = [emotion, *range(len(self.emotions), len(self.emotions) + self.plan.seeds)]
        swept = [Variant(kind, source, k, emotion) for kind in KINDS for source in sources for k in self.ks[kind]]
        return [Variant("neurons", emotion, 0, emotion), *swept]

    def wording(self, index: int) -> str:
        """Names the frames of an item: items of one wording differ in their scenarios only."""
        first = {
            len(of_emotion): index * style.per_item % len(of_emotion)
            for style in self.styles
            for of_emotion in style.emotions.values()
        }
        return str(sorted(first.items()))

    def unpack(self, changes: np.ndarray) -> dict[str, np.ndarray]:
        """Changes [..., variants] to kind -> [..., 1 + seeds, k]."""
        out, start = {}, 0
        for kind, ks in self.ks.items():
            stop = start + (1 + self.plan.seeds) * len(ks)
            out[kind] = changes[..., start:stop].reshape(*changes.shape[:-1], -1, len(ks))
            start = stop
        return out

    def _elicitation(self, item: Item, index: int) -> list[list[Prompt]]:
        """The prompts of each emotion, in all styles. Raises: PromptError."""
        prompts: list[list[Prompt]] = [[] for _ in self.emotions]
        for style in self.styles:
            of_style = [
                tuple(
                    render(self.tokenizer, frame, item.user, style.reply_tokens)
                    for frame in style.frames(emotion, index)
                )
                for emotion in self.emotions
            ]
            require_different(of_style, style.name)
            for of_emotion, more in zip(prompts, of_style, strict=True):
                of_emotion += more
        return prompts

    def measure(self, item: Item, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The scores of one item as one row, and the states of its elicitation prompts."""
        rows = {name: np.zeros(shape) for name, shape in self.shapes.items()}
        states, asked = np.zeros(self.states_shape), np.zeros(self.states_shape)
        for e, prompts in enumerate(self._elicitation(item, index)):
            for prompt in prompts:
                scores, state, last = sweep(
                    self.decoder, prompt, self.units, "ablation", self.variants(e), batch_size=self.batch_size
                )
                rows["elicited"][e] += scores[0] / len(prompts)
                rows["ablation"][e] += (scores[1:, :, e] - scores[0, :, e]).T / len(prompts)
                states[e] += state / len(prompts)
                asked[e] += last / len(prompts)
        neutral = render(self.tokenizer, self.styles[0].neutral, item.user)
        variants = [variant for e in range(len(self.emotions)) for variant in self.variants(e)[1:]]
        scores, _, plain = sweep(
            self.decoder,
            neutral,
            self.units,
            "enhancement",
            [self.variants(0)[0], *variants],
            self.plan.scale,
            self.batch_size,
        )
        rows["neutral"][:] = scores[0]
        changes = (scores[1:] - scores[0]).reshape(len(self.emotions), -1, 2, len(self.emotions))
        for e in range(len(self.emotions)):
            rows["enhancement"][e] = changes[e, :, :, e].T
        if self.views is not None:
            rows["seen"][:] = self.views.of(neutral, plain, asked)
        row = np.concatenate([values.ravel() for values in rows.values()]).astype(np.float32)
        if not np.isfinite(row).all():
            raise ResultsError(
                f"{item.id}: a score is not finite; the model's dtype is too narrow, or lambda too large"
            )
        return row, states.astype(np.float32)
