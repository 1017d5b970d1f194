"""An emotion in Inspect (pip install inspect-ai openai):

export EMOVLLM_BASE_URL=http://localhost:8000/v1 EMOVLLM_API_KEY=none
inspect eval examples/integrations/inspect_task.py --model openai-api/emovllm/SmolLM2-135M-Instruct:anger
inspect eval examples/integrations/inspect_task.py --model openai-api/emovllm/SmolLM2-135M-Instruct \\
    --extra-body '{"emotion": "anger", "emotion_strength": 1.2}'

It counts the replies that say that somebody is angry: a way through Inspect, no measure of an emotion.
"""

from __future__ import annotations

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

MESSAGES = Path(__file__).with_name("lm_eval") / "messages.jsonl"


@task
def says_angry() -> Task:
    """Six messages, and whether the reply has the word."""
    lines = MESSAGES.read_text().splitlines()
    return Task(
        dataset=[Sample(input=json.loads(line)["message"], target="angry") for line in lines],
        solver=generate(),
        scorer=includes(),
        config=GenerateConfig(temperature=0, max_tokens=40),
    )
