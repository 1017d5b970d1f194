"""The kernels of an older processor: with this folder on PYTHONPATH, vLLM takes the processor for one with AVX2 alone.

PyTorch and oneDNN heed variables (ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2); vLLM asks PyTorch what the
processor can do, and chooses its library of kernels by that. docs/contributing.md has the whole command.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_NEWER = ("avx512", "amx", "avx10", "avx_vnni", "avx_ne")


class _BeforeVllm(importlib.abc.MetaPathFinder):
    """Hides what is newer than AVX2 when vLLM is first imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name == "vllm":
            sys.meta_path.remove(self)
            _hide()
        return None


def _hide() -> None:
    import torch.cpu

    found = torch.cpu.get_capabilities()
    older = {name: has and not name.startswith(_NEWER) if isinstance(has, bool) else has for name, has in found.items()}
    torch.cpu.get_capabilities = lambda: older


sys.meta_path.insert(0, _BeforeVllm())
