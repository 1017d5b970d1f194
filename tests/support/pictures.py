"""A stand-in for torchvision, which has no build for the tests' PyTorch. vLLM's classes of models of text and images
import it; models that are asked about text alone never call it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import MagicMock

# In the environment of an engine's start (support/series.py), asks for it.
PICTURES = "EMOVLLM_TESTS_PICTURES"

_NAME = "torchvision"


class _StandIn(MetaPathFinder, Loader):
    """Finds any module of torchvision's; each has whatever is asked of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == _NAME else None

    def exec_module(self, module: ModuleType) -> None:
        def anything(name: str) -> MagicMock:
            if name.startswith("__"):
                raise AttributeError(name)
            return MagicMock(name=name)

        module.__getattr__ = anything  # type: ignore[method-assign]


def stand_in() -> None:
    """From now on it can be imported, though Transformers does not take it for installed. Idempotent."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available() and find_spec(_NAME) is None:
        sys.meta_path.append(_StandIn())
