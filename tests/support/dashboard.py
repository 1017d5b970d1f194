"""The Grafana dashboard's queries, read without Grafana or Prometheus."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import emovllm

ROOT = Path(emovllm.__file__).parent.parent


def _script() -> Any:
    loader = SourceFileLoader("check_dashboard", str(ROOT / "scripts/check_dashboard"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


check_dashboard = _script()
DASHBOARD: Path = check_dashboard.DASHBOARD
filled = check_dashboard.filled
queries = check_dashboard.queries
missing = check_dashboard.missing
