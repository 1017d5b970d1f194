"""Finding, validating, calibrating and evaluating emotion circuits with Hugging Face models.

`from emovllm_offline import discover, refine, validate, calibrate, evaluate, measure_side_effects, train_probe,
measure_persistence, compare, Control, load_style`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emovllm.lazy import lazily

if TYPE_CHECKING:
    from emovllm_offline.api import calibrate as calibrate
    from emovllm_offline.api import compare as compare
    from emovllm_offline.api import discover as discover
    from emovllm_offline.api import evaluate as evaluate
    from emovllm_offline.api import measure_persistence as measure_persistence
    from emovllm_offline.api import measure_side_effects as measure_side_effects
    from emovllm_offline.api import refine as refine
    from emovllm_offline.api import train_probe as train_probe
    from emovllm_offline.api import validate as validate
    from emovllm_offline.data.styles import load_style as load_style
    from emovllm_offline.model.control import Control as Control

__all__ = [
    "Control",
    "calibrate",
    "compare",
    "discover",
    "evaluate",
    "load_style",
    "measure_persistence",
    "measure_side_effects",
    "refine",
    "train_probe",
    "validate",
]

_FUNCTIONS = (
    "calibrate",
    "compare",
    "discover",
    "evaluate",
    "measure_persistence",
    "measure_side_effects",
    "refine",
    "train_probe",
    "validate",
)
# Loaded when they are asked for: they import PyTorch.
_EXPORTS = {
    **dict.fromkeys(_FUNCTIONS, "emovllm_offline.api"),
    "load_style": "emovllm_offline.data.styles",
    "Control": "emovllm_offline.model.control",
}
__getattr__, __dir__ = lazily(__name__, __all__, _EXPORTS)
