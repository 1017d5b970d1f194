"""The form in which emotions are added: by device, columns and what was asked for, and in the compile cache's key."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CompilationMode

from emovllm.emotion import KEY
from emovllm.engine.arithmetic import MAX_FUSED
from emovllm.engine.form import Form, faster, form_of
from emovllm.engine.settings import Carried, Settings, settings_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("form", "columns", "device", "kept"),
    [
        (Form(True, torch.bfloat16), 6, CUDA, torch.bfloat16),
        (Form(True, torch.float16), MAX_FUSED, CUDA, torch.float16),
        (Form(True, torch.float32), 6, CUDA, torch.float32),
        (Form(True, torch.bfloat16), MAX_FUSED + 1, CUDA, torch.float32),
        (Form(False, torch.bfloat16), 6, CUDA, torch.float32),
        (Form(True, torch.bfloat16), 6, CPU, torch.float32),
        (Form(True, torch.bfloat16, "mm"), 6, CUDA, torch.float32),
        (Form(True, torch.bfloat16, "fused"), MAX_FUSED + 1, CUDA, torch.bfloat16),
        (Form(False, torch.bfloat16, "triton"), 256, CUDA, torch.bfloat16),
        (Form(True, torch.bfloat16, "triton").elsewhere, MAX_FUSED + 1, CUDA, torch.float32),
    ],
)
def test_vectors_have_the_models_type_where_reading_them_is_what_the_sum_costs(
    form: Form, columns: int, device: torch.device, kept: torch.dtype
) -> None:
    assert form.vector_type(columns, device) == kept


def config_of(settings: Settings, mode: CompilationMode) -> Any:
    return SimpleNamespace(
        compilation_config=SimpleNamespace(mode=mode),
        model_config=SimpleNamespace(dtype=torch.bfloat16),
        additional_config={KEY: Carried(settings), "other": 1},
    )


@pytest.mark.parametrize(
    ("asked", "columns", "mode", "kernel"),
    [
        ("auto", MAX_FUSED, CompilationMode.VLLM_COMPILE, "auto"),
        ("auto", MAX_FUSED + 1, CompilationMode.VLLM_COMPILE, "mm"),
        ("auto", 6, CompilationMode.NONE, "mm"),
        ("fused", MAX_FUSED + 1, CompilationMode.VLLM_COMPILE, "fused"),
        ("mm", 6, CompilationMode.VLLM_COMPILE, "mm"),
        ("triton", 6, CompilationMode.NONE, "triton"),
    ],
)
def test_the_form_is_the_one_asked_for_or_fits_and_is_in_the_compile_caches_key(
    asked: Any, columns: int, mode: CompilationMode, kernel: str
) -> None:
    settings = Settings(circuit="any", graph="1/6x1/mlp0", injection_kernel=asked)
    config = config_of(settings, mode)
    form = form_of(config, settings, torch.zeros(8, columns))
    assert form == (mode != CompilationMode.NONE, torch.bfloat16, kernel)
    assert config.additional_config == {KEY: f"1/6x1/mlp0/{kernel}", "other": 1}
    assert settings_of(config) == settings
    assert pickle.loads(pickle.dumps(config.additional_config[KEY])) == f"1/6x1/mlp0/{kernel}"


@pytest.mark.parametrize(("milliseconds", "kernel"), [((1, 2, 1, 2), "mm"), ((2, 1, 2, 2), "triton")])
def test_the_faster_kernel_is_taken_and_measuring_leaves_no_coefficient(
    interpreted: None, milliseconds: tuple[float, ...], kernel: str
) -> None:
    coefficients, steered = torch.zeros(8, 20), []
    times = iter(milliseconds)

    def bench(run: Callable[[], Any]) -> float:
        run()
        steered.append(int(coefficients.any(1).sum()))
        return next(times)

    assert faster(coefficients, 24, torch.bfloat16, (4, 8), bench) == kernel
    # A batch that decodes, all steered; a prefill of plain requests.
    assert steered[:2] == [4, 4]
    assert steered[2:] == [0, 0]
    assert not coefficients.any()
