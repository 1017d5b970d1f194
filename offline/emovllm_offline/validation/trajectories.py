"""What a circuit does to states on their way through the layers, beside asking for it (arXiv 2510.11328, figure 1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from emovllm.circuit import Circuit
from emovllm.emotion import Emotion
from emovllm.errors import ResultsError
from emovllm_offline.data.prompts import Prompt
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.intervals import mean_interval
from emovllm_offline.model.control import Control
from emovllm_offline.model.decoder import Decoder, repeat_cache
from emovllm_offline.model.hooks import after, hooked
from emovllm_offline.model.spec import is_of
from emovllm_offline.validation.results import CONDITIONS, Trajectory, rounded


class Views:
    """Where states are looked at: along each emotion's direction of their layer, and in the plane of the two principal
    components of all emotions' directions of all layers after the MLP.

    The circuit is injected at lambda 1 at a prompt's last token, whatever its scope.
    """

    def __init__(self, decoder: Decoder, circuit: Circuit, findings: Findings) -> None:
        """Raises: ResultsError where the circuit is of other emotions than the findings, or of another model."""
        if circuit.names != findings.emotions:
            raise ResultsError(
                f"the findings are of {', '.join(findings.emotions)}, but the circuit is of {', '.join(circuit.names)}"
            )
        if not is_of(circuit, decoder):
            raise ResultsError(f"the circuit is of another model: {circuit.spec.model.id}")
        self.decoder = decoder
        self.control = Control(decoder.model, circuit)
        self.directions = findings.mlp_directions  # [E, L, hidden]
        self.plane = plane(findings.mlp_directions)  # [2, hidden]
        self.sigma = findings.sigma[1::2]  # the RMS of the residual after each MLP [L]

    @property
    def shape(self) -> tuple[int, ...]:
        """CONDITIONS, emotions, layers; then the coordinate along the emotion's direction and the two in the plane."""
        return (len(CONDITIONS), *self.directions.shape[:2], 3)

    def of(self, neutral: Prompt, plain: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """What an item is seen to be at a prompt's last token: float64 of `shape`, in units of the residual.

        plain: the neutral prompt's states after the MLP [L, hidden]; asked: those of the prompts that ask for each
        emotion [E, L, hidden].
        """
        moved = under_circuit(self.decoder, self.control, neutral)
        return np.stack([self._seen(states) for states in (np.broadcast_to(plain, moved.shape), moved, asked)])

    def _seen(self, states: np.ndarray) -> np.ndarray:
        along = np.einsum("eld,eld->el", states.astype(np.float64), self.directions)
        return np.concatenate([along[..., None], states @ self.plane.T], -1)

    def summarise(self, seen: np.ndarray) -> list[Trajectory]:
        """seen: the mean of each scenario's items, [scenarios, *shape]."""
        mean, low, high = mean_interval(seen[..., 0])  # three of [CONDITIONS, E, L]
        # From the neutral prompt's state, in units that the layers share.
        path = (seen[..., 1:] - seen[:, :1, ..., 1:]).mean(0) / self.sigma[:, None]
        return [
            Trajectory(emotion, condition, *(rounded(values[c, e]) for values in (mean, low, high, path)))
            for e, emotion in enumerate(self.control.circuit.names)
            for c, condition in enumerate(CONDITIONS)
        ]


def plane(directions: np.ndarray) -> np.ndarray:
    """The first two principal components of directions [E, L, hidden], over emotions and layers: [2, hidden], unit
    norm."""
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full").fit(directions.reshape(-1, directions.shape[-1]))
    return np.asarray(pca.components_)


@torch.no_grad()
def under_circuit(decoder: Decoder, control: Control, prompt: Prompt) -> np.ndarray:
    """The states after each MLP at a prompt's last token, where each emotion of the circuit is injected at lambda 1
    there, and nowhere before: float32 [E, L, hidden]."""
    names = control.circuit.names
    emotions = [Emotion(((name, 1.0),), "generation") for name in names]
    states = torch.zeros(len(names), len(decoder.layers), decoder.hidden_size)

    def keep(layer: int) -> Callable[[Tensor], None]:
        def see(hidden: Tensor) -> None:
            states[:, layer] = hidden[:, -1].float().cpu()

        return see

    cache = decoder.prefix_cache(prompt.ids[:-1])
    ids = torch.full((len(names), 1), prompt.ids[-1], device=decoder.device)
    hooks = [after(layer.block, keep(i)) for i, layer in enumerate(decoder.layers)]
    # The one token that is run is, to the control, all of the prompt.
    with control.emotion(emotions, prompt_len=1), hooked(hooks):
        decoder.scores(ids, repeat_cache(cache, len(names)), last=1)
    return states.numpy()
