"""The steps, those first whose results are worth the most: a run may be cut at any time.

To add a step: a module with what it measures and what it has to say, and a row here.
"""

from __future__ import annotations

from functools import partial

from benchmarks.gpu import columns, exactness, kernels, speed
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.run import Step


def steps(plan: Plan) -> list[Step]:
    first, *others = plan.shapes
    return [
        *(
            Step(
                f"exactness-{setting.name}",
                4,
                partial(exactness.measure, setting=setting),
                partial(exactness.section, setting=setting),
            )
            for setting in plan.settings
        ),
        _speed(first),
        Step(f"kernels-{first}", 4, partial(kernels.measure, shape=first), kernels.section),
        Step(f"columns-{first}", 5, partial(columns.measure, shape=first), columns.section),
        *map(_speed, others),
    ]


def _speed(shape: str) -> Step:
    return Step(f"speed-{shape}", 8, partial(speed.measure, shape=shape), partial(speed.section, shape=shape))
