"""The Python API, for notebooks: what the commands do, on a Hugging Face model that is in memory or that is named.

Each function returns what it made together with its figures: `table()` gives rows as dicts, `plot()` a picture that a
notebook shows and that can be saved.
"""

from __future__ import annotations

from emovllm_offline.api.comparing import RunComparison as RunComparison
from emovllm_offline.api.comparing import compare as compare
from emovllm_offline.api.evaluating import Calibration as Calibration
from emovllm_offline.api.evaluating import Evaluation as Evaluation
from emovllm_offline.api.evaluating import calibrate as calibrate
from emovllm_offline.api.evaluating import evaluate as evaluate
from emovllm_offline.api.finding import Discovery as Discovery
from emovllm_offline.api.finding import Refinement as Refinement
from emovllm_offline.api.finding import Validated as Validated
from emovllm_offline.api.finding import discover as discover
from emovllm_offline.api.finding import refine as refine
from emovllm_offline.api.finding import validate as validate
from emovllm_offline.api.reading import Persisted as Persisted
from emovllm_offline.api.reading import ProbeTraining as ProbeTraining
from emovllm_offline.api.reading import measure_persistence as measure_persistence
from emovllm_offline.api.reading import train_probe as train_probe
from emovllm_offline.api.results import Picture as Picture
from emovllm_offline.api.serving import Server as Server
from emovllm_offline.api.side_effects import SideEffectsRun as SideEffectsRun
from emovllm_offline.api.side_effects import measure_side_effects as measure_side_effects
from emovllm_offline.evaluation.settings import CalibrationSettings as CalibrationSettings
from emovllm_offline.evaluation.settings import EvaluationSettings as EvaluationSettings
from emovllm_offline.evaluation.settings import RunSettings as RunSettings
from emovllm_offline.reading.settings import Fitting as Fitting
from emovllm_offline.reading.settings import Persisting as Persisting
from emovllm_offline.reading.settings import Reading as Reading
from emovllm_offline.reading.train import ProbeData as ProbeData
